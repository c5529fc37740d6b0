"""`/v1/responses` over HTTP beside the socket of the same path, in simulated time: what begins on one transport is
seen, followed, continued, cancelled and deleted on the other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgi_clients import Exchange, Socket, ask
from simulated_server import simulate, until

from jitney.runtime import DynamicEngine, SamplingParams
from jitney.streaming import sse

ROUTE = "/v1/responses"
SHORT = {"input": "hi", "seed": 1, "max_output_tokens": 5, "ignore_eos": True}
LONG = {"input": "hi", "seed": 1, "ignore_eos": True}
ENDS = ("response.completed", "response.incomplete", "response.failed")


async def frames(socket: Socket) -> list[Any]:
    """To the end of an answer, or an error."""
    got = [await socket.recv()]
    while got[-1]["type"] not in (*ENDS, "error"):
        got.append(await socket.recv())
    return got


async def events(exchange: Exchange) -> list[Any]:
    got: list[Any] = []
    while not got or got[-1] is not None:
        got.append(await exchange.event())
    return got[:-1]


def comparable(frame: Any) -> Any:
    """Without what differs between two answers to the same request."""
    if isinstance(frame, dict):
        own = ("id", "item_id", "created_at", "completed_at", "jitney")
        return {name: comparable(value) for name, value in frame.items() if name not in own}
    return [comparable(value) for value in frame] if isinstance(frame, list) else frame


def test_plain_stream_and_socket_tell_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        async with Socket(app) as socket:
            socket.send(type="response.create", **SHORT)
            on_socket = await frames(socket)
        async with Exchange(app, "POST", ROUTE, {**SHORT, "stream": True}) as exchange:
            assert exchange.headers["content-type"].startswith("text/event-stream")
            over_sse = await events(exchange)
        status, plain = await ask(app, "POST", ROUTE, SHORT)
        joined = ["".join(e.get("delta", "") for e in told) for told in (on_socket, over_sse)]
        assert joined[0] == joined[1] == plain["output"][0]["content"][0]["text"]
        assert comparable(on_socket[-1]) == comparable(over_sse[-1]) and status == 200
        told, shown = (dict(comparable(r)) for r in (over_sse[-1]["response"], plain))
        for response in (told, shown):
            response["usage"].pop("input_tokens_details")
        assert told == shown and plain["status"] == "incomplete"
        status, again = await ask(app, "GET", f"{ROUTE}/{plain['id']}")
        assert (status, again) == (200, plain)

    simulate(monkeypatch, body)


def test_background_answers_beyond_the_bound_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not taken in and cancelled at once, since nobody reads them."""

    async def body(engine: DynamicEngine, app: Any) -> None:
        app.state.service.registry._max_detached = 1
        _, begun = await ask(app, "POST", ROUTE, {**LONG, "background": True})
        status, refused = await ask(app, "POST", ROUTE, {**LONG, "background": True})
        assert (status, refused["error"]["code"]) == (429, "rate_limit_exceeded")
        await ask(app, "POST", f"{ROUTE}/{begun['id']}/cancel")
        assert (await ask(app, "POST", ROUTE, {**LONG, "background": True}))[0] == 200

    simulate(monkeypatch, body)


def test_background_answers_are_polled_followed_and_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        status, begun = await ask(app, "POST", ROUTE, {**LONG, "background": True})
        assert (status, begun["status"], begun["background"]) == (200, "in_progress", True)
        path = f"{ROUTE}/{begun['id']}"
        async with Exchange(app, "GET", f"{path}?stream=true") as exchange:
            first = [await exchange.event() for _ in range(3)]
        assert [event["sequence_number"] for event in first] == [1, 2, 3]
        await until(lambda: bool(engine.stats().finished))
        _, seen = await ask(app, "GET", path)
        assert seen["status"] == "incomplete" and seen["incomplete_details"]["reason"] == "max_output_tokens"
        _, begun = await ask(app, "POST", ROUTE, {**LONG, "background": True})
        status, cancelled = await ask(app, "POST", f"{ROUTE}/{begun['id']}/cancel")
        assert (status, cancelled["status"]) == (200, "cancelled")
        assert (await ask(app, "POST", f"{ROUTE}/{begun['id']}/cancel"))[1] == cancelled
        status, deleted = await ask(app, "DELETE", f"{ROUTE}/{begun['id']}")
        assert deleted == {"id": begun["id"], "object": "response", "deleted": True}
        assert (await ask(app, "GET", f"{ROUTE}/{begun['id']}"))[0] == 404

    simulate(monkeypatch, body)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", ["cancel", "finish", None])
def test_hanging_up(monkeypatch: pytest.MonkeyPatch, stream: bool, mode: Any) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        wanted = {} if mode is None else {"jitney": {"on_disconnect": mode}}
        chat = {"messages": [{"role": "user", "content": "hi"}], "ignore_eos": True, "seed": 1}
        exchanges = [
            Exchange(app, "POST", path, {**request, **wanted, "stream": stream})
            for path, request in ((ROUTE, LONG), ("/v1/chat/completions", chat))
        ]
        for exchange in exchanges:
            exchange.start()
        await until(lambda: engine.stats().running == 2)
        for exchange in exchanges:
            await exchange.hang_up()
        await until(lambda: not engine.stats().running)
        expected = {"length": 2} if mode == "finish" else {"cancelled": 2}
        assert engine.stats().finished == expected

    simulate(monkeypatch, body)


def test_conversations_go_on_across_transports(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        async with Socket(app) as socket:
            socket.send(type="response.create", **SHORT)
            parent = (await frames(socket))[-1]["response"]
        status, child = await ask(app, "POST", ROUTE, {**SHORT, "previous_response_id": parent["id"]})
        assert status == 200 and child["previous_response_id"] == parent["id"]
        said = len("hi") + len(parent["output"][0]["content"][0]["text"]) + len("hi")
        assert child["usage"]["input_tokens"] == said + 4, "with each message's role, and the answer's"
        async with Socket(app) as socket:
            socket.send(type="response.create", **SHORT, previous_response_id=child["id"])
            grandchild = (await frames(socket))[-1]["response"]
        said += len(child["output"][0]["content"][0]["text"]) + len("hi")
        assert grandchild["usage"]["input_tokens"] == said + 6
        _, running = await ask(app, "POST", ROUTE, {**LONG, "background": True})
        for missing in ("resp_x", running["id"]):
            status, error = await ask(app, "POST", ROUTE, {**SHORT, "previous_response_id": missing})
            assert (status, error["error"]["code"]) == (400, "previous_response_not_found")

    simulate(monkeypatch, body)


def test_a_warm_up_is_continued_from_its_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    system = "a long set of instructions, the same each time"

    async def body(engine: DynamicEngine, app: Any) -> None:
        async with Socket(app) as socket:
            socket.send(
                type="response.create", generate=False, instructions=system, input=[], stream_id="warm"
            )
            told = await frames(socket)
            assert [frame["type"].split(".")[1] for frame in told] == ["created", "in_progress", "completed"]
            warm = told[-1]["response"]
            assert (warm["output"], warm["usage"]["output_tokens"]) == ([], 0)
            socket.send(type="response.create", **SHORT, previous_response_id=warm["id"], instructions=system)
            answer = (await frames(socket))[-1]["response"]
            stats = engine.stats()
            assert stats.kv_pages_pinned == (len(system) + 2) // 4 and stats.kept_responses == 2
        cached = answer["usage"]["input_tokens_details"]["cached_tokens"]
        assert cached == (len(system) + 1) // 4 * 4
        assert (await ask(app, "DELETE", f"{ROUTE}/{warm['id']}"))[0] == 200

    simulate(monkeypatch, body)


def test_chat_completions_are_followed_as_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "ignore_eos": True, "seed": 1}

    async def body(engine: DynamicEngine, app: Any) -> None:
        status, completion = await ask(app, "POST", "/v1/chat/completions", chat)
        async with Exchange(app, "GET", f"{ROUTE}/{completion['id']}?stream=true") as exchange:
            told = await events(exchange)
        assert told[-1]["response"]["id"] == completion["id"]
        text = "".join(event.get("delta", "") for event in told)
        assert text == completion["choices"][0]["message"]["content"]
        follow_up = {**SHORT, "previous_response_id": completion["id"]}
        assert (await ask(app, "POST", ROUTE, follow_up))[0] == 200
        _, several = await ask(app, "POST", "/v1/chat/completions", {**chat, "n": 2})
        status, error = await ask(app, "GET", f"{ROUTE}/{several['id']}")
        assert (status, error["error"]["code"]) == (400, "several_answers")
        status, plain = await ask(app, "POST", "/v1/completions", {"prompt": "hi", "max_tokens": 3})
        status, error = await ask(app, "POST", ROUTE, {**SHORT, "previous_response_id": plain["id"]})
        assert error["error"]["code"] == "previous_response_not_found", "no conversation to go on with"

    simulate(monkeypatch, body)


def test_an_answer_of_the_chat_socket_is_followed_and_cancelled_over_http(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    messages = [{"id": "u", "role": "user", "parts": [{"type": "text", "text": "hi"}]}]
    send = {"type": "send", "requestId": "r", "id": "chat", "trigger": "submit-message", "messages": messages}

    async def body(engine: DynamicEngine, app: Any) -> None:
        async with Socket(app, "/v1/chat/ws") as socket:
            socket.send(**send, body={"ignore_eos": True})
            frame = await socket.recv()
            while frame["type"] != "chunk":
                frame = await socket.recv()
        response_id = frame["chunk"]["messageMetadata"]["responseId"]
        async with Exchange(app, "GET", f"{ROUTE}/{response_id}?stream=true") as exchange:
            assert (await exchange.event())["response"]["id"] == response_id
            status, cancelled = await ask(app, "POST", f"{ROUTE}/{response_id}/cancel")
            assert (status, cancelled["status"], cancelled["model"]) == (200, "cancelled", "simulated")
            assert (await events(exchange))[-1]["response"]["status"] == "cancelled"
        assert (await ask(app, "POST", ROUTE, {**SHORT, "previous_response_id": response_id}))[0] == 200

    simulate(monkeypatch, body)


def test_a_silent_stream_says_that_it_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        for path, request in ((ROUTE, SHORT), ("/v1/completions", {"prompt": "x", "max_tokens": 1})):
            blockers = [await engine.submit("x", SamplingParams(ignore_eos=True)) for _ in range(20)]
            async with Exchange(app, "POST", path, {**request, "stream": True}) as exchange:
                body = b""
                while b"[DONE]" not in body and b"response.incomplete" not in body:
                    body += await exchange._piece()
            before, comments = body.split(sse.COMMENT)[0], body.count(sse.COMMENT)
            assert comments >= 3 and b"delta" not in before and b'"text":"' not in before
            for blocker in blockers:
                blocker.cancel()

    simulate(monkeypatch, body, max_rows=1)


def test_what_waits_is_told_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        async with Socket(app) as socket:
            for lane in "abcdefgh":
                socket.send(type="response.create", stream_id=lane, **LONG)
            told: list[Any] = []
            for _ in range(8):
                while not told or told[-1]["type"] not in ENDS:
                    told.append(await socket.recv())
                told.append({"type": ""})
            progress = [frame for frame in told if "jitney" in frame and frame["type"] not in ENDS]
            assert {frame["type"] for frame in progress} == {"response.in_progress"}
            assert {frame["sequence_number"] for frame in progress} == {2}
            positions = {frame["jitney"]["queue_position"] for frame in progress}
            assert positions >= {1, 2, 3} and max(positions) <= 8
            waiting = next(frame for frame in progress if frame["jitney"]["queue_position"])
            assert waiting["response"]["status"] == "queued"
            assert waiting["jitney"]["prefill_total"] == len("hi") + 2

    simulate(monkeypatch, body, max_rows=1)


def test_progress_is_not_told_to_a_socket_that_lags_where_it_might_be_read_after_a_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        first = [await engine.submit("hi", SamplingParams(seed=1, ignore_eos=True)) for _ in range(40)]
        async with Socket(app) as socket:
            socket.send(type="response.create", **LONG)
            told = [await socket.recv() for _ in range(3)]
            assert [frame["sequence_number"] for frame in told] == [1, 2, 2]
            line = socket._wire.line
            line.pause()
            await asyncio.sleep(5)
            assert not first[-1].done
            line.resume()
            for _ in range(5):
                await asyncio.sleep(0)
            assert not socket._pipe._items

    simulate(monkeypatch, body, max_rows=1)


def test_a_reader_with_credit_gets_so_many_deltas(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        async with Socket(app) as socket:
            socket.send(type="response.create", **LONG, jitney={"credit": 2})
            told = [await socket.recv() for _ in range(6)]
            assert [frame["type"] for frame in told[4:]] == ["response.output_text.delta"] * 2
            response_id = told[0]["response"]["id"]
            await until(lambda: bool(engine.stats().finished))
            await asyncio.sleep(100)
            assert not socket._pipe._items, "nothing without credit"
            socket.send(type="jitney:credit", response_id=response_id, credit=1)
            rest = await frames(socket)
            kinds = [frame["type"] for frame in rest]
            assert kinds[0] == "response.output_text.delta" and kinds[1] == "response.output_text.done"
            text = "".join(frame.get("delta", "") for frame in told + rest)
            assert text == rest[-1]["response"]["output"][0]["content"][0]["text"]
            assert rest[-1]["response"]["jitney"]["merged_deltas"] > 50

    simulate(monkeypatch, body)


def test_what_is_no_delta_needs_no_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        async with Socket(app) as socket:
            socket.send(type="response.create", **SHORT)
            told = await frames(socket)
            deltas = [frame for frame in told if frame["type"].endswith(".delta")]
            last, response_id = deltas[-1]["sequence_number"], told[0]["response"]["id"]
            resume = {"type": "jitney:response.resume", "response_id": response_id, "starting_after": last}
            socket.send(**resume, credit=0)
            rest = [frame["sequence_number"] for frame in await frames(socket)]
            assert rest == [frame["sequence_number"] for frame in told if frame["sequence_number"] > last]
            socket.send(type="response.create", **LONG, jitney={"credit": 1})
            while not (await socket.recv())["type"].endswith(".delta"):
                pass
            await asyncio.sleep(1)
            socket.send(type="response.cancel")
            rest = await frames(socket)
            assert rest[-1]["response"]["incomplete_details"] == {"reason": "cancelled"}
            socket.send(type="response.create", **SHORT)
            assert (await frames(socket))[-1]["type"] in ENDS, "the lane is free"

    simulate(monkeypatch, body)


@pytest.mark.parametrize(("patience", "fewest", "most"), [({}, 6, 10), ({"max_flush_ms": 0.001}, 30, 92)])
def test_deltas_wait_for_so_many_tokens_or_so_long(
    monkeypatch: pytest.MonkeyPatch, patience: Any, fewest: int, most: int
) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        flush = {"jitney": {"min_flush_tokens": 10, **patience}}
        async with Socket(app) as socket:
            socket.send(type="response.create", **LONG, **flush)
            told = await frames(socket)
        deltas = [frame["delta"] for frame in told if "delta" in frame]
        assert fewest <= len(deltas) <= most
        async with Exchange(
            app,
            "POST",
            "/v1/completions",
            {"prompt": "hi", "max_tokens": 90, "ignore_eos": True, "stream": True, **flush},
        ) as exchange:
            texts = [e["choices"][0]["text"] for e in await events(exchange) if e != "[DONE]"]
        assert fewest <= sum(map(bool, texts)) <= most

    simulate(monkeypatch, body)


def test_refusals_come_as_statuses_and_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        for path, request, param in (
            (ROUTE, {"input": "x" * 200}, "input"),
            (ROUTE, {"input": "hi", "stream": True, "max_output_tokens": 1000}, "max_output_tokens"),
            (ROUTE, {"input": "hi", "jitney": {"credit": 1}}, "jitney.credit"),
            ("/v1/completions", {"prompt": "hi", "jitney": {"credit": 1}}, "jitney.credit"),
            (ROUTE, {"input": "hi", "wibble": 1}, "wibble"),
            (ROUTE, b"{", "body"),
        ):
            status, error = await ask(app, "POST", path, request)
            assert (status, error["error"]["param"]) == (400, param)
        status, error = await ask(app, "GET", f"{ROUTE}/resp_x?wibble=1")
        assert (status, error["error"]["param"]) == (400, "wibble")
        assert not app.state.service.registry._entries

    simulate(monkeypatch, body)


def test_a_deadline_is_an_incomplete_answer_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(engine: DynamicEngine, app: Any) -> None:
        status, answer = await ask(app, "POST", ROUTE, {**LONG, "jitney": {"deadline_ms": 100}})
        assert (status, answer["status"]) == (200, "incomplete")
        assert answer["incomplete_details"] == {"reason": "deadline"}

    simulate(monkeypatch, body)


def test_lanes_go_on_when_their_socket_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And hold no socket's place: whoever comes back finds room."""

    async def body(engine: DynamicEngine, app: Any) -> None:
        async with Socket(app) as socket:
            for _ in range(3):
                socket.send(type="response.create", stream_id="a", **LONG)
            ids: set[str] = set()
            while len(ids) < 3:
                ids |= {(await socket.recv()).get("response", {}).get("id", "")} - {""}
        await socket.task
        assert not engine.stats().finished, "the handler has left before the first answer is over"
        for response_id in ids:
            async with Exchange(app, "GET", f"{ROUTE}/{response_id}?stream=true") as exchange:
                assert (await events(exchange))[-1]["type"] == "response.incomplete"
        assert engine.stats().finished == {"length": 3}

    simulate(monkeypatch, body)
