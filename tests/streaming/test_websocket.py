"""The Responses socket over a real server: disconnects, cancels, limits, broken traffic, slow readers."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from jitney.runtime.testing import Reply
from jitney.streaming.protocols.session import MAX_IN_FLIGHT, MAX_WAITING
from jitney.streaming.websocket import ResponsesSocket


def dial(served: Any, **options: Any) -> Any:
    return connect(
        served.url.replace("http", "ws") + "/v1/responses", **{"proxy": None, "close_timeout": 0.1, **options}
    )


async def send(socket: ClientConnection, **frame: Any) -> None:
    await socket.send(json.dumps(frame))


async def create(socket: ClientConnection, text: str, **fields: Any) -> None:
    await send(socket, type="response.create", input=text, **fields)


async def until(socket: ClientConnection, *kinds: str) -> list[Any]:
    """The frames up to the first of one of these kinds."""
    frames: list[Any] = []
    async with asyncio.timeout(60):
        while not frames or frames[-1]["type"] not in kinds:
            frames.append(json.loads(await socket.recv()))
    return frames


CANCEL = {"on_disconnect": "cancel"}
ENDS = ("response.completed", "response.incomplete", "response.failed", "error")


async def test_two_lanes_interleave_and_one_is_cancelled(serving: Any) -> None:
    async with serving() as served, dial(served) as socket:
        await create(socket, "slow", stream_id="a")
        await create(socket, "slow", stream_id="b")
        frames: list[Any] = []
        while {f.get("stream_id") for f in frames if f["type"].endswith("delta")} != {"a", "b"}:
            frames += await until(socket, "response.output_text.delta")
        await send(socket, type="response.cancel", stream_id="a")
        ended = (await until(socket, *ENDS))[-1]
        assert (ended["stream_id"], ended["response"]["status"]) == ("a", "cancelled")
        assert (await until(socket, "response.output_text.delta"))[-1]["stream_id"] == "b"
        await served.until(lambda stats: stats.running == 1)
        await create(socket, "sky", stream_id="a")
        frames = [f for f in await until(socket, *ENDS) if f["stream_id"] == "a"]
        assert frames[-1]["response"]["output"][0]["content"][0]["text"] == "Rayleigh scattering."


async def test_a_disconnect_cancels_what_runs_and_what_waits(serving: Any) -> None:
    async with serving(config={"max_rows": 2}) as served:
        async with dial(served) as socket:
            for number in range(20):
                await create(socket, "slow", stream_id=f"l{number % 18}", jitney=CANCEL)
            await served.until(lambda stats: stats.running == 2 and stats.waiting == 14)
        await served.until_idle()
        async with dial(served) as socket:
            await create(socket, "slow", jitney=CANCEL)
            await until(socket, "response.created")
            socket.transport.abort()
        await served.until_idle()


async def test_a_full_socket_that_drops_loses_no_answer_that_is_to_be_finished(serving: Any) -> None:
    finish = {"on_disconnect": "finish"}
    num_turns = MAX_IN_FLIGHT + MAX_WAITING
    async with serving() as served:
        async with dial(served) as socket:
            for number in range(num_turns):
                lane = str(number % MAX_IN_FLIGHT)
                await create(socket, "slow", stream_id=lane, jitney=finish, max_output_tokens=9)
            opened: set[str] = set()
            while len(opened) < num_turns:
                frame = (await until(socket, "response.queued", "response.created"))[-1]
                opened.add(frame["response"]["id"])
            socket.transport.abort()
        await served.until(lambda stats: stats.finished == {"length": num_turns})


async def test_a_deadline_passes_while_a_turn_waits_in_its_lane(serving: Any) -> None:
    async with serving() as served, dial(served) as socket:
        await create(socket, "slow")
        await create(socket, "sky", deadline_ms=30)
        await create(socket, "sky")
        ended = (await until(socket, *ENDS))[-1]["response"]
        assert (ended["status"], ended["incomplete_details"]) == ("incomplete", {"reason": "deadline"})
        await send(socket, type="response.cancel")
        assert (await until(socket, *ENDS))[-1]["response"]["status"] == "cancelled"
        assert (await until(socket, *ENDS))[-1]["response"]["status"] == "completed"
        await served.until_idle()


async def test_a_cancel_between_create_and_acceptance_is_heard(serving: Any) -> None:
    async with serving() as served, dial(served) as socket:
        for _ in range(20):
            await create(socket, "slow")
            await send(socket, type="response.cancel")
            assert (await until(socket, *ENDS))[-1]["response"]["status"] == "cancelled"
        await served.until_idle()


async def test_errors_leave_the_socket_and_the_other_lanes_running(serving: Any) -> None:
    async with serving() as served, dial(served) as socket:
        await create(socket, "slow", stream_id="a")
        for frame, code in [
            ("{", "invalid_value"),
            ('{"type": "response.create", "input": "x", "temperature": NaN}', "invalid_value"),
            ('{"type": "response.create", "input": "x", "model": "y"}', "model_not_found"),
            (
                '{"type": "response.create", "input": "x", "previous_response_id": "y"}',
                "previous_response_not_found",
            ),
            (json.dumps({"type": "response.create", "input": "x" * 9000}), "context_length_exceeded"),
            ('{"type": "wibble"}', "invalid_value"),
            (b'{"type": "response.create", "input": []}', "invalid_value"),
        ]:
            await socket.send(frame)
            error = (await until(socket, "error"))[-1]
            assert (
                error["error"]["code"] == code and 400 <= error["status"] < 500 and "stream_id" not in error
            )
        await create(socket, "broken", stream_id="b")
        failed = (await until(socket, *ENDS))[-1]
        assert (failed["type"], failed["stream_id"]) == ("response.failed", "b")
        assert failed["response"]["error"]["code"] == "server_error"
        assert failed["response"]["output"][0]["content"][0]["text"] == "half a"
        await until(socket, "response.output_text.delta")


async def test_a_continuation_that_breaks_evicts_its_parent_and_one_that_is_cancelled_does_not(
    serving: Any,
) -> None:
    async with serving() as served, dial(served) as socket:
        await create(socket, "sky")
        parent = (await until(socket, *ENDS))[-1]["response"]["id"]
        await create(socket, "slow", previous_response_id=parent)
        await until(socket, "response.created")
        await send(socket, type="response.cancel")
        assert (await until(socket, *ENDS))[-1]["response"]["status"] == "cancelled"
        for lane, code in (("other", "server_error"), (None, "server_error"), (None, None)):
            fields = {} if lane is None else {"stream_id": lane}
            await create(socket, "broken", previous_response_id=parent, **fields)
            ended = (await until(socket, *ENDS))[-1]
            if code is None:
                assert ended["error"]["code"] == "previous_response_not_found"
            else:
                assert ended["response"]["error"]["code"] == code


async def test_an_error_after_queued_has_the_next_number(serving: Any) -> None:
    async with serving() as served, dial(served) as socket:
        await create(socket, "sky")
        await create(socket, "sky", previous_response_id="x")
        frames = await until(socket, "error")
        assert frames[-1]["error"]["code"] == "previous_response_not_found"
        (queued,) = (frame for frame in frames if frame["type"] == "response.queued")
        assert frames[-1]["sequence_number"] == queued["sequence_number"] + 1
        await create(socket, "sky", previous_response_id="x")
        assert "sequence_number" not in (await until(socket, "error"))[-1]


async def test_a_full_queue_is_a_429_with_retry_after(serving: Any) -> None:
    async with serving(config={"max_rows": 1, "max_queued": 1}) as served, dial(served) as socket:
        for number in range(6):
            await create(socket, "slow", stream_id=str(number))
        error = (await until(socket, "error"))[-1]
        assert error["status"] == 429 and int(error["error"]["headers"]["retry-after"]) >= 1


async def test_frames_over_the_limit_close_with_1009(serving: Any) -> None:
    async with serving(max_frame_bytes=1000) as served:
        async with dial(served) as socket:
            padding = 1000 - len('{"type": "wibble", "a": ""}')
            await socket.send(json.dumps({"type": "wibble", "a": "x" * padding}))
            assert (await until(socket, "error"))[-1]["status"] == 400
            await socket.send("x" * 1001)
            with pytest.raises(ConnectionClosed):
                await socket.recv()
        assert socket.close_code == 1009


async def test_a_client_that_floods_and_does_not_read_is_cut_off(serving: Any) -> None:
    async with serving() as served, dial(served, max_queue=1) as socket:
        socket.transport.pause_reading()
        await create(socket, "slow", stream_id="a", jitney=CANCEL)
        flood = asyncio.create_task(_flood(socket))
        await served.until(lambda stats: stats.finished == {"cancelled": 1})
        flood.cancel()
        await asyncio.wait({flood})
        socket.transport.abort()


async def _flood(socket: ClientConnection) -> None:
    while True:
        await send(socket, type="response.steer", input="x" * 60_000)


class StuckSocket:
    """A Starlette WebSocket whose client reads one frame for each permit."""

    def __init__(self) -> None:
        self.scope: dict[str, Any] = {}
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: list[Any] = []
        self.permits = asyncio.Semaphore(0)

    async def accept(self) -> None:
        pass

    async def receive(self) -> Any:
        return await self.incoming.get()

    async def send(self, message: Any) -> None:
        await self.permits.acquire()
        self.sent.append(json.loads(message["text"]))


async def test_a_turns_frames_follow_the_replies_that_were_due_before(serving: Any) -> None:
    async with serving() as served:
        stuck = StuckSocket()
        running = asyncio.create_task(ResponsesSocket(served.app.state.service, stuck).run())  # type: ignore[arg-type]
        for frame in [{"type": "wibble"}] * 3 + [{"type": "response.create", "input": "sky"}] * 3:
            stuck.incoming.put_nowait({"type": "websocket.receive", "text": json.dumps(frame)})
        await served.until(lambda stats: sum(stats.finished.values()) == 1)
        for _ in range(400):
            stuck.permits.release()
        await served.until(lambda stats: len(stuck.sent) > 3 and stuck.sent[-1]["type"] == ENDS[0])
        kinds = [frame["type"].removeprefix("response.") for frame in stuck.sent]
        assert kinds[:3] == ["error"] * 3 and "error" not in kinds[3:]
        assert kinds.count("queued") == 2
        stuck.incoming.put_nowait({"type": "websocket.disconnect"})
        await running


async def test_a_slow_reader_gets_merged_deltas_and_holds_up_nobody(serving: Any) -> None:
    text = "tock " * 800
    async with serving(Reply(match="long", text=text)) as served:
        async with dial(served, max_queue=1) as slow, dial(served) as quick:
            slow.transport.pause_reading()
            for lane in range(4):
                await create(slow, "long", stream_id=str(lane))
            await served.until(lambda stats: sum(stats.finished.values()) == 4)
            await create(quick, "sky")
            assert (await until(quick, *ENDS))[-1]["type"] == "response.completed"
            slow.transport.resume_reading()
            texts: dict[str, str] = {}
            num_deltas = num_ended = 0
            while num_ended < 4:
                frame = json.loads(await slow.recv())
                if frame["type"] == "response.output_text.delta":
                    num_deltas += 1
                    texts[frame["stream_id"]] = texts.get(frame["stream_id"], "") + frame["delta"]
                num_ended += frame["type"] == "response.completed"
            assert set(texts.values()) == {text}
            assert num_deltas < 4 * len(text)


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"Authorization": "Bearer secret", "Origin": "https://evil.example"}, 403)],
)
async def test_handshakes_are_refused_over_http(serving: Any, headers: Any, status: int) -> None:
    async with serving(api_key="secret") as served:
        with pytest.raises(InvalidStatus) as refused:
            async with dial(served, additional_headers=headers):
                pass
        assert refused.value.response.status_code == status
        assert json.loads(refused.value.response.body)["error"]["type"] == "invalid_request_error"
        async with dial(served, additional_headers={"Authorization": "Bearer secret"}) as socket:
            await create(socket, "sky")
            assert (await until(socket, *ENDS))[-1]["type"] == "response.completed"


BROKEN = [
    b"\x81\x83\x00\x00\x00\x00\xff\xff\xff",  # text that is not UTF-8
    b"\xf1\x80\x00\x00\x00\x00",  # reserved bits
    b"\x81\x02hi",  # unmasked
    b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00",  # a length of 2**63
    b"\x09\x80\x00\x00\x00\x00",  # a fragmented ping
    b"\x83\x80\x00\x00\x00\x00",  # an opcode that does not exist
    b"\x81\xfe",  # half a header, then nothing
]


@pytest.mark.parametrize("raw", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_broken_traffic_ends_its_own_socket_only(serving: Any, raw: bytes) -> None:
    async with serving() as served, dial(served) as good:
        async with dial(served) as bad:
            await create(bad, "slow", jitney=CANCEL)
            await until(bad, "response.created")
            bad.transport.write(raw)
            bad.transport.write_eof() if raw == BROKEN[-1] else None
            with pytest.raises(ConnectionClosed):
                while True:
                    await bad.recv()
        await served.until_idle()
        await create(good, "sky")
        assert (await until(good, *ENDS))[-1]["type"] == "response.completed"


async def test_mutated_frames_over_one_socket(serving: Any) -> None:
    rng = random.Random(3)
    seed = json.dumps({"type": "response.create", "input": "x", "stream_id": "a", "max_output_tokens": 2})
    async with serving() as served, dial(served) as socket:
        for _ in range(500):
            raw = list(seed)
            for _ in range(rng.randrange(1, 4)):
                raw[rng.randrange(len(raw))] = chr(rng.randrange(32, 300))
            await socket.send("".join(raw))
            ended = (await until(socket, *ENDS))[-1]
            assert ended["type"] != "error" or ended["status"] < 500
        await served.until_idle()
