"""The unmodified openai-python SDK against a real server."""

from __future__ import annotations

from typing import Any

from openai import AsyncOpenAI

SKY = [{"role": "user", "content": "Why is the sky blue?"}]


def sdk(served: Any, **options: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{served.url}/v1", **{"api_key": "any", "max_retries": 0, **options})


async def test_chat_plain(serving: Any) -> None:
    async with serving() as served, sdk(served) as client:
        answer = await client.chat.completions.create(model="scripted", messages=SKY, logprobs=True, top_logprobs=2)
        assert answer.choices[0].message.content == "Rayleigh scattering."
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens == 21 and answer.usage.total_tokens == 21 + answer.usage.prompt_tokens
        assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


async def test_chat_stream(serving: Any) -> None:
    async with serving() as served, sdk(served) as client:
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                model="scripted", messages=SKY, stream=True, n=2, stream_options={"include_usage": True}
            )
        ]
        for index in (0, 1):
            choices = [c for chunk in chunks for c in chunk.choices if c.index == index]
            assert choices[0].delta.role == "assistant"
            assert "".join(c.delta.content or "" for c in choices) == "Rayleigh scattering."
            assert [c.finish_reason for c in choices if c.finish_reason] == ["stop"]
        assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 42
