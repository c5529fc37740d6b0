"""`/v1/responses` over HTTP: create, look at, follow, cancel and delete answers, whichever route began them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from time import time
from uuid import uuid4

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Send

from ...runtime.errors import RequestError
from ..conversation import conversation, shown
from ..entry import Entry
from ..http import Answer, Endpoint, json_reply
from ..principal import Principal, principal_of
from ..protocols.create import HTTP_FIELDS, Create
from ..protocols.delivery import CANCEL, FINISH
from ..protocols.errors import failure
from ..protocols.fields import parse
from ..protocols.retrieve import retrieve
from ..reader import Reader
from ..service import Service
from ..sse import EventStream, event


class Responses:
    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        one = "/v1/responses/{response_id}"
        return [
            Route("/v1/responses", Endpoint(self._service, self._create), methods=["POST"]),
            Route(one, Endpoint(self._service, self._retrieve), methods=["GET"]),
            Route(one, self._delete, methods=["DELETE"]),
            Route(f"{one}/cancel", self._cancel, methods=["POST"]),
        ]

    async def _create(self, request: Request, body: bytes, send: Send) -> Answer:
        principal = principal_of(request.scope)
        create = Create(parse(body), self._service.model, HTTP_FIELDS)
        delivery = create.request.delivery()
        if delivery.credit is not None:
            raise RequestError("jitney.credit: belongs to the WebSocket", field="jitney.credit")
        entry, registry = self._entry(create, principal), self._service.registry
        if create.request.background:
            registry.check_room(principal)
        with registry.reading(registry.open(entry)):
            self._service.start(registry.begin(entry, [create.command(entry.history or ())]))
            await entry.begun()
            if create.request.stream:
                reader = Reader(entry, self._service.backend.tokenizer, delivery=delivery)
                await _stream(reader, EventStream(send))
                return None
            if not create.request.background:
                await entry.over()
        return self._plain(entry)

    async def _retrieve(self, request: Request, body: bytes, send: Send) -> Answer:
        asked = retrieve(request.query_params.multi_items())
        entry = self._find(request)
        entry.check_single()
        if not asked.stream:
            return msgspec.json.encode(shown(entry, self._service.backend.tokenizer).response())
        reader = Reader(entry, self._service.backend.tokenizer, after=asked.starting_after)
        with self._service.registry.reading(entry):
            await _stream(reader, EventStream(send))
        return None

    async def _cancel(self, request: Request) -> Response:
        """Answers with the response as it then is; one that is over stays as it is."""
        entry = self._find(request)
        self._service.registry.cancel(principal_of(request.scope), entry.id)
        return json_reply(shown(entry, self._service.backend.tokenizer).response())

    async def _delete(self, request: Request) -> Response:
        response_id = request.path_params["response_id"]
        self._service.registry.delete(principal_of(request.scope), response_id)
        return json_reply({"id": response_id, "object": "response", "deleted": True})

    def _entry(self, create: Create, principal: Principal) -> Entry:
        parent = create.request.previous_response_id
        history = create.messages
        if parent is not None:
            tokenizer = self._service.backend.tokenizer
            history = [*conversation(self._service.registry, principal, parent, tokenizer), *history]
        default = FINISH if create.request.background else CANCEL
        policy = create.request.delivery().policy(default)
        facts = create.facts(time())
        return Entry(f"resp_{uuid4().hex}", principal, policy, facts=facts, history=history)

    def _find(self, request: Request) -> Entry:
        return self._service.registry.find(principal_of(request.scope), request.path_params["response_id"])

    def _plain(self, entry: Entry) -> Answer:
        """The response object, or the error that ended it."""
        if entry.response is not None and entry.response.done:
            failed = failure(entry.response.log.last)
            if failed is not None and failed.status == 500:
                return failed
        return msgspec.json.encode(shown(entry, self._service.backend.tokenizer).response())


async def _stream(reader: Reader, events: EventStream) -> None:
    """Everything the reader is to be sent. What it refuses before its first frame is still a plain answer."""
    async with aclosing(reader.frames()) as batches:
        first = await anext(batches)
        await events.open()
        async with asyncio.TaskGroup() as tasks:
            alive = tasks.create_task(events.keep_alive())
            await events.put(b"".join(map(event, first)))
            async for batch in batches:
                await events.put(b"".join(map(event, batch)))
            await events.rest()
            alive.cancel()
        await events.close()
