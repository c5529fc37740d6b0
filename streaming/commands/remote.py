"""A server as something to talk to, for `jitney chat --url`: the conversation goes along with every question."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from ...runtime.errors import JitneyError
from ...runtime.events import Event
from ...runtime.params import SamplingParams
from ..client import Client, connect


class Talker(Protocol):
    """What a conversation is held with: an engine, or a server."""

    def stream(self, messages: list[dict[str, Any]], params: SamplingParams, /) -> AsyncGenerator[Event]: ...


class Remote:
    def __init__(self, client: Client) -> None:
        self._client = client

    def stream(self, messages: list[dict[str, Any]], params: SamplingParams) -> AsyncGenerator[Event]:
        wishes = {"temperature": params.temperature, "max_output_tokens": params.max_tokens}
        fields = {name: value for name, value in wishes.items() if value is not None}
        return self._client.stream(messages, **fields)


@asynccontextmanager
async def remote(url: str, *, api_key: str | None, model: str | None) -> AsyncIterator[Remote]:
    """Raises `JitneyError` where the server is not there, or refuses."""
    try:
        async with connect(url, api_key=api_key or None, model=model) as client:
            yield Remote(client)
    except OSError as error:
        raise JitneyError(f"{url}: {error}") from error
