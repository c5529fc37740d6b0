"""The unmodified openai-python SDK against a real server."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from jitney.runtime import DynamicEngine
from jitney.runtime.testing import Reply, Script, ScriptedBackend
from jitney.streaming import create_app

SKY: Any = [{"role": "user", "content": "Why is the sky blue?"}]


def sdk(served: Any, **options: Any) -> Any:
    return AsyncOpenAI(base_url=f"{served.url}/v1", **{"api_key": "any", "max_retries": 0, **options})


async def test_chat_plain(serving: Any) -> None:
    async with serving() as served, sdk(served) as client:
        answer = await client.chat.completions.create(
            model="scripted", messages=SKY, logprobs=True, top_logprobs=2
        )
        assert answer.choices[0].message.content == "Rayleigh scattering."
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage and answer.usage.completion_tokens == 21
        assert answer.usage.total_tokens == 21 + answer.usage.prompt_tokens
        logprobs = answer.choices[0].logprobs
        assert logprobs and logprobs.content and len(logprobs.content[0].top_logprobs) == 2
        assert "".join(entry.token for entry in logprobs.content[:20]) == "Rayleigh scattering."


async def test_chat_stream(serving: Any) -> None:
    async with serving() as served, sdk(served) as client:
        stream = await client.chat.completions.create(
            model="scripted", messages=SKY, stream=True, n=2, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        for index in (0, 1):
            choices = [c for chunk in chunks for c in chunk.choices if c.index == index]
            assert choices[0].delta.role == "assistant"
            assert "".join(c.delta.content or "" for c in choices) == "Rayleigh scattering."
            assert [c.finish_reason for c in choices if c.finish_reason] == ["stop"]
        assert chunks[-1].choices == [] and chunks[-1].usage and chunks[-1].usage.completion_tokens == 42


async def test_chat_stream_helper_accumulates_the_same_text(serving: Any) -> None:
    async with serving() as served, sdk(served) as client:
        async with client.chat.completions.stream(model="scripted", messages=SKY) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.content == "Rayleigh scattering."


async def test_completions(serving: Any) -> None:
    async with serving() as served, sdk(served) as client:
        prompts = ["sky", "no match"]
        answer = await client.completions.create(
            model="scripted", prompt=prompts, n=2, max_tokens=64, logprobs=1
        )
        assert [c.text for c in answer.choices] == ["Rayleigh scattering."] * 2 + ["no match"] * 2
        assert [c.index for c in answer.choices] == [0, 1, 2, 3]
        stream = await client.completions.create(model="scripted", prompt=list(b"sky"), stream=True)
        texts = [c.choices[0].text async for c in stream]
        assert "".join(texts) == "Rayleigh scattering."[:16]


async def test_a_fault_in_mid_stream_is_an_error_not_an_end(serving: Any) -> None:
    async with serving() as served, sdk(served) as client:
        broken: Any = [{"role": "user", "content": "broken"}]
        stream = await client.chat.completions.create(model="scripted", messages=broken, stream=True)
        text = ""
        with pytest.raises(openai.APIError, match="script failed"):
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        assert text == "half a"
        with pytest.raises(openai.InternalServerError, match="script failed"):
            await client.chat.completions.create(model="scripted", messages=broken)


async def test_error_classes(serving: Any) -> None:
    async with serving(api_key="secret", config={"max_rows": 1, "max_queued": 1}) as served:
        async with sdk(served, api_key="wrong") as client:
            with pytest.raises(openai.AuthenticationError, match="Authorization: Bearer"):
                await client.models.list()
        async with sdk(served, api_key="secret") as client:
            with pytest.raises(openai.NotFoundError, match="served: 'scripted'") as missing:
                await client.chat.completions.create(model="gpt-5", messages=SKY)
            assert missing.value.code == "model_not_found"
            with pytest.raises(openai.BadRequestError, match="temperature: expected") as bad:
                await client.chat.completions.create(model="scripted", messages=SKY, temperature=3)
            assert bad.value.param == "temperature"
            with pytest.raises(openai.BadRequestError) as long:
                await client.completions.create(model="scripted", prompt="x" * 10_000)
            assert long.value.code == "context_length_exceeded" and long.value.param == "prompt"
            with pytest.raises(openai.RateLimitError) as full:
                slow = [
                    client.completions.create(model="scripted", prompt="slow", max_tokens=99)
                    for _ in range(4)
                ]
                await asyncio.gather(*slow)
            assert int(full.value.response.headers["retry-after"]) >= 1


async def test_models(serving: Any) -> None:
    async with serving(served_model_name="org/name") as served, sdk(served) as client:
        assert [model.id async for model in client.models.list()] == ["org/name"]
        assert (await client.models.retrieve("org/name")).id == "org/name"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("scripted")


async def test_responses_two_lanes_chaining_and_cancel(serving: Any) -> None:
    async with serving(Reply(match="and then", text="Then it set.")) as served, sdk(served) as client:
        async with client.responses.connect() as connection:
            await connection.response.create(input="slow", model="scripted", stream_id="a")
            await connection.response.create(input="the sky", model="scripted", stream_id="b")
            texts = {"a": "", "b": ""}
            kinds: dict[str, list[str]] = {"a": [], "b": []}
            final: dict[str, Any] = {}
            async for event in connection:
                kinds[event.stream_id].append(event.type)
                if event.type == "response.output_text.delta":
                    texts[event.stream_id] += event.delta
                if event.type in ("response.completed", "response.incomplete"):
                    final[event.stream_id] = event.response
                if "b" in final and "a" not in final:
                    await connection.send({"type": "response.cancel", "stream_id": "a"})
                if len(final) == 2:
                    break
            assert texts["b"] == final["b"].output_text == "Rayleigh scattering."
            assert final["a"].status == "cancelled" and final["a"].output_text == texts["a"]
            assert kinds["a"][:2] == ["response.created", "response.in_progress"]
            await served.until_idle()
            previous = final["b"].id
            await connection.response.create(
                input="and then?", model="scripted", previous_response_id=previous
            )
            event = [event async for event in _until_terminal(connection)][-1]
            assert event.response.output_text == "Then it set."
            assert event.response.previous_response_id == previous
            assert event.response.usage.input_tokens > len("the skyRayleigh scattering.and then?")


async def test_responses_session_collects_lanes(serving: Any) -> None:
    from openai.lib.responses_websocket import AsyncResponsesWebSocketSession, ResponsesWebSocketLimits

    limits = ResponsesWebSocketLimits(8, 4096, 8192, 2**20, 2**22)
    async with serving() as served, sdk(served) as client, client.responses.connect() as connection:
        async with AsyncResponsesWebSocketSession(connection, limits=limits) as session:
            lane = session.lane("one")
            await lane.send({"type": "response.create", "model": "scripted", "input": "sky"})
            final = await lane.get_final_response()
            assert final.output_text == "Rayleigh scattering."


async def test_responses_over_http(serving: Any) -> None:
    async with serving(Reply(match="and then", text="Then it set.")) as served, sdk(served) as client:
        plain = await client.responses.create(model="scripted", input="sky", store=False, user="me")
        assert plain.output_text == "Rayleigh scattering." and plain.status == "completed"
        async with client.responses.stream(model="scripted", input="sky") as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert final.output_text == "Rayleigh scattering." and kinds[-1] == "response.completed"
        chained = await client.responses.create(
            model="scripted", input="and then?", previous_response_id=final.id
        )
        assert chained.output_text == "Then it set." and chained.previous_response_id == final.id
        assert (await client.responses.retrieve(plain.id)).output_text == plain.output_text
        await client.responses.delete(plain.id)
        with pytest.raises(openai.NotFoundError) as gone:
            await client.responses.retrieve(plain.id)
        assert gone.value.code == "response_not_found"


async def test_a_background_response_is_resumed_and_cancelled(serving: Any) -> None:
    async with serving() as served, sdk(served) as client:
        stream = await client.responses.create(model="scripted", input="slow", background=True, stream=True)
        seen: list[Any] = []
        async for event in stream:
            seen.append(event)
            if len(seen) == 20:
                await stream.close()
                break
        response_id, after = seen[0].response.id, seen[-1].sequence_number
        assert (await client.responses.retrieve(response_id)).status == "in_progress"
        rest = await client.responses.retrieve(response_id, stream=True, starting_after=after)
        async for event in rest:
            seen.append(event)
            if len(seen) == 40:
                cancelled = await client.responses.cancel(response_id)
        numbers = [event.sequence_number for event in seen]
        assert numbers == sorted(set(numbers)) and seen[-1].type == "response.incomplete"
        assert cancelled.status == seen[-1].response.status == "cancelled"
        text = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
        assert text == seen[-1].response.output_text and ("tick " * 1600).startswith(text)


async def test_a_warm_up_on_the_socket(serving: Any) -> None:
    async with serving() as served, sdk(served) as client, client.responses.connect() as connection:
        instructions = "Answer in as few words as you can, and say nothing that you are not asked." * 3
        await connection.send(
            {
                "type": "response.create",
                "model": "scripted",
                "generate": False,
                "instructions": instructions,
                "input": [],
            }
        )
        warm = [event async for event in _until_terminal(connection)][-1].response
        assert warm.output == [] and warm.usage.output_tokens == 0
        await connection.response.create(
            model="scripted", input="sky", instructions=instructions, previous_response_id=warm.id
        )
        answer = [event async for event in _until_terminal(connection)][-1].response
        assert answer.output_text == "Rayleigh scattering."
        assert answer.usage.input_tokens_details.cached_tokens >= len(instructions) - 16


async def test_reasoning_over_every_route(serve_app: Any) -> None:
    script = Script(reasons=True, reply=[Reply(text="<think>\nIt scatters.\n</think>\n\nRayleigh.")])
    async with DynamicEngine(ScriptedBackend(script)) as engine, serve_app(create_app(engine)) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            chat = await client.chat.completions.create(model="scripted", messages=SKY)
            message: Any = chat.choices[0].message
            assert (message.reasoning_content, message.content) == ("It scatters.", "Rayleigh.")
            stream = await client.chat.completions.create(model="scripted", messages=SKY, stream=True)
            deltas: list[Any] = [chunk.choices[0].delta async for chunk in stream]
            reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
            assert reasoning == "It scatters."
            assert "".join(delta.content or "" for delta in deltas) == "Rayleigh."
            answer: Any = await client.responses.create(model="scripted", input=SKY)
            assert [item.type for item in answer.output] == ["reasoning", "message"]
            assert answer.output[0].content[0].text == "It scatters." and answer.output_text == "Rayleigh."
            assert answer.usage.output_tokens_details.reasoning_tokens > 10
            again = await client.responses.create(
                model="scripted", input=[*SKY, *(item.to_dict() for item in answer.output), *SKY]
            )
            assert again.output_text == "Rayleigh.", "our own items come back as input"
            raw = await client.completions.create(model="scripted", prompt="x")
            assert raw.choices[0].text.startswith("<think>"), "raw completions are shown as they are"


async def test_mounted_under_a_prefix(serving: Any, serve_app: Any) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    async with serving(api_key="any") as served:
        async with serve_app(Starlette(routes=[Mount("/llm", served.app)])) as url:
            async with AsyncOpenAI(base_url=f"{url}/llm/v1", api_key="any", max_retries=0) as client:
                answer = await client.chat.completions.create(model="scripted", messages=SKY)
                assert answer.choices[0].message.content == "Rayleigh scattering."
                async with client.responses.connect() as connection:
                    await connection.response.create(input="sky", model="scripted")
                    kinds = [event.type async for event in _until_terminal(connection)]
                assert kinds[-1] == "response.completed"
            async with httpx.AsyncClient(base_url=f"{url}/llm", timeout=60) as client:
                assert (await client.get("/live")).status_code == 200
                assert (await client.get("/v1/models")).status_code == 401


async def _until_terminal(connection: Any) -> Any:
    async for event in connection:
        yield event
        if event.type == "response.completed":
            return
