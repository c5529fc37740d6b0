"""The unmodified openai-python SDK against the real server and the real default model."""

from __future__ import annotations

import asyncio
from typing import Any

from openai import AsyncOpenAI

from jitney.runtime import DynamicEngine, EngineConfig
from jitney.streaming import create_app

MODEL = "smollm2-135m"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY: Any = {"temperature": 0, "model": MODEL}


async def terminal(connection: Any, lanes: int = 1) -> dict[Any, Any]:
    """The last response of each lane."""
    final: dict[Any, Any] = {}
    async for event in connection:
        assert event.type != "error", event
        if event.type in ("response.completed", "response.incomplete", "response.failed"):
            final[getattr(event, "stream_id", None)] = event.response
        if len(final) == lanes:
            return final
    raise AssertionError("the socket closed")


async def test_http_sse_lanes_warm_up_and_chaining(serve_app: Any) -> None:
    config = EngineConfig(max_rows=4, max_context=1024)
    async with DynamicEngine(MODEL, config) as engine, serve_app(create_app(engine)) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            chat = await client.chat.completions.create(messages=QUESTION, max_tokens=12, **GREEDY)
            text = chat.choices[0].message.content
            assert text and "Paris" in text
            chunks = await client.chat.completions.create(
                messages=QUESTION, max_tokens=12, stream=True, **GREEDY
            )
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in chunks]) == text
            answer = await client.responses.create(input=QUESTION, max_output_tokens=12, **GREEDY)
            assert answer.output_text == text
            async with client.responses.stream(input=QUESTION, max_output_tokens=16, **GREEDY) as stream:
                final = await stream.get_final_response()
            assert final.output_text.startswith(text)
            await _over_the_socket(client, engine, text)
        assert (await engine.drain()) is True


async def _over_the_socket(client: AsyncOpenAI, engine: DynamicEngine, text: str) -> None:
    instructions = (
        "You answer questions about the capitals of the countries of Europe, and nothing else. " * 4
    )
    async with client.responses.connect() as connection:
        for lane in ("a", "b"):
            await connection.response.create(input=QUESTION, max_output_tokens=12, stream_id=lane, **GREEDY)
        both = await terminal(connection, lanes=2)
        assert both["a"].output_text == both["b"].output_text == text
        await connection.send(
            {
                "type": "response.create",
                "generate": False,
                "instructions": instructions,
                "input": QUESTION,
                **GREEDY,
            }
        )
        (warm,) = (await terminal(connection)).values()
        assert warm.output == [] and warm.usage.output_tokens == 0 < warm.usage.input_tokens
        await connection.response.create(
            input="And of Italy?",
            instructions=instructions,
            previous_response_id=warm.id,
            max_output_tokens=8,
            **GREEDY,
        )
        (chained,) = (await terminal(connection)).values()
        cached = chained.usage.input_tokens_details.cached_tokens
        assert cached >= warm.usage.input_tokens - 64, (cached, warm.usage)
        assert chained.usage.input_tokens > warm.usage.input_tokens and chained.output_text
    while engine.stats().running:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
