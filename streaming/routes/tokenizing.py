"""`POST /v1/tokenize` and `/v1/detokenize`. They run on the engine's tokenizer threads, and only so many wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...runtime.errors import QueueFull
from ..http import json_body, json_reply
from ..protocols.tokenizing import detokenize, tokenize
from ..service import Service

MAX_WAITING = 32


class Tokenizing:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._num_waiting = 0

    def routes(self) -> list[Route]:
        return [
            Route("/v1/tokenize", self._tokenize, methods=["POST"]),
            Route("/v1/detokenize", self._detokenize, methods=["POST"]),
        ]

    async def _tokenize(self, request: Request) -> Response:
        service = self._service
        asked = tokenize(await json_body(request, service.max_body_bytes), service.model)
        content = asked.content()
        with self._waiting():
            tokens = await service.engine.intake.encode(
                content, add_bos=asked.add_special_tokens, template_options=asked.chat_template_kwargs
            )
        answer = {"count": len(tokens), "max_model_len": service.engine.context_length, "tokens": tokens}
        if asked.return_token_strs:
            answer["token_strs"] = [service.backend.tokenizer.token_text(token) for token in tokens]
        return json_reply(answer)

    async def _detokenize(self, request: Request) -> Response:
        service = self._service
        body = await json_body(request, service.max_body_bytes)
        tokens = detokenize(
            body,
            service.model,
            vocab_size=service.backend.vocab_size,
            max_tokens=service.engine.context_length,
        )
        with self._waiting():
            text = await service.engine.intake.decode(tokens)
        return json_reply({"prompt": text})

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        if self._num_waiting >= MAX_WAITING:
            raise QueueFull(f"{MAX_WAITING} texts wait to be tokenised, the most that may")
        self._num_waiting += 1
        try:
            yield
        finally:
            self._num_waiting -= 1
