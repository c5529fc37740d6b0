"""The short way of a frame: the same bytes as plain ASGI, one write a turn, bounded; and broken WebSocket traffic."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import psutil
import pytest
import uvicorn
from raw_websocket import BINARY, CLOSE, CONT, PING, PONG, TEXT, RawWebSocket, frame
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from jitney.streaming import sender as sending
from jitney.streaming import wire
from jitney.streaming.line import MAX_HELD_BYTES, Line, Outbox
from jitney.streaming.wire import READ_BYTES, FrameProtocol, frame_sender

TEXTS = ["", "a", "x" * 125, "x" * 126, "é" * 40_000, "x" * 65_535, "x" * 65_536, "😀"]


@pytest.fixture(autouse=True, params=["loop", "thread"])
async def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """Who writes to sockets: the loop does with few of them, and a thread with many."""
    if request.param == "loop":
        yield "loop"
        return
    monkeypatch.setattr(sending, "FEWEST_CORES", 1)
    monkeypatch.setattr("jitney.streaming.line.FEW", 1)
    sender = sending.open_sender()
    assert sender is not None
    monkeypatch.setattr(wire, "Outbox", partial(Outbox, sender))
    yield "thread"
    sender.close()


by_the_loop = pytest.mark.parametrize("way", ["loop"], indirect=True)


@asynccontextmanager
async def serving(handler: Any, protocol: Any = FrameProtocol, **options: Any) -> AsyncIterator[str]:
    app = Starlette(routes=[WebSocketRoute("/", handler)])
    options = {"ws_max_size": 100_000, "ws_per_message_deflate": False, **options}
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws=protocol, **options)
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while True:
        if server.started:
            break
        await asyncio.sleep(0.002)
    try:
        yield f"ws://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        await running


async def send_texts(websocket: WebSocket) -> None:
    await websocket.accept()
    send = frame_sender(websocket).send_frame
    for text in TEXTS:
        await send(text.encode())
    await websocket.close(1000)


async def listen(websocket: WebSocket) -> None:
    """Reads until the client leaves; answers "ok" to each message."""
    await websocket.accept()
    try:
        while True:
            await websocket.receive()
            await websocket.send_text("ok")
    except (WebSocketDisconnect, RuntimeError):
        pass


async def everything(url: str) -> bytes:
    """What the server sends, to its close frame."""
    received = b""
    async with RawWebSocket(url) as ws:
        while not received.endswith(frame(CLOSE, b"\x03\xe8", masked=False)):
            received += await ws.reader.read(2**16)
    return received


async def test_the_short_way_gives_the_same_bytes_as_plain_asgi() -> None:
    async with serving(send_texts) as short, serving(send_texts, "websockets-sansio") as plain:
        sent = await everything(short)
        assert sent == await everything(plain)
    assert sent == b"".join(frame(TEXT, text.encode(), masked=False) for text in TEXTS) + frame(
        CLOSE, b"\x03\xe8", masked=False
    )


async def test_deflate_takes_the_plain_way() -> None:
    async def handler(websocket: WebSocket) -> None:
        assert "jitney.frames" not in websocket.scope["extensions"]
        await send_texts(websocket)

    async with serving(handler, ws_per_message_deflate=True) as url:
        assert len(await everything(url)) > sum(map(len, TEXTS))


@by_the_loop
async def test_frames_of_one_turn_go_out_in_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    flush = Line.flush

    def counted(self: Line) -> None:
        if self._frames:
            writes.append(b"".join(self._frames))
        flush(self)

    monkeypatch.setattr(Line, "flush", counted)

    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        send = frame_sender(websocket).send_frame
        for _ in range(3):
            await asyncio.gather(*(send(b"lane") for _ in range(16)))
            await asyncio.sleep(0.01)
        await websocket.close(1000)

    async with serving(handler) as url:
        await everything(url)
    assert writes == [frame(TEXT, b"lane", masked=False) * 16] * 3


async def test_reading_goes_on_up_to_the_second_message_that_waits() -> None:
    opened, gate, received = list[FrameProtocol](), asyncio.Event(), list[str]()

    class Known(FrameProtocol):
        def connection_made(self, transport: Any) -> None:
            if not opened:  # the upgrade's is the first
                opened.append(self)
            super().connection_made(transport)

    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        await gate.wait()
        for _ in range(3):
            received.append((await websocket.receive())["text"])
        await websocket.close(1000)

    async with serving(handler, Known) as url, RawWebSocket(url) as ws:
        [protocol] = opened
        for text, goes_on in ((b"one", True), (b"two", False)):
            ws.writer.write(frame(TEXT, text))
            waiting = protocol.queue.qsize()
            while True:
                if protocol.queue.qsize() > waiting:
                    break
                await asyncio.sleep(0)
            assert protocol.transport.is_reading() == goes_on
        ws.writer.write(frame(TEXT, b"three"))
        gate.set()
        assert await ws.reader.readexactly(4) == frame(CLOSE, b"\x03\xe8", masked=False)
        assert protocol.transport.is_reading()
    assert received == ["one", "two", "three"]


@by_the_loop
async def test_connections_of_a_server_send_in_one_callback_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, calls, put = asyncio.get_running_loop(), list[Any](), asyncio.Event()
    call_soon, flush = loop.call_soon, Outbox._flush

    def counted(callback: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(callback)
        return call_soon(callback, *arguments, **options)

    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        sender = frame_sender(websocket)
        await put.wait()
        assert sender.has_room
        sender.put_frame(b"now")
        await websocket.receive()
        assert not sender.has_room

    async with serving(handler, partial(FrameProtocol, outbox=Outbox())) as url:
        sockets = [await RawWebSocket(url).__aenter__() for _ in range(8)]
        monkeypatch.setattr(loop, "call_soon", counted)
        put.set()
        for ws in sockets:
            assert await ws.reader.readexactly(5) == frame(TEXT, b"now", masked=False)
        flushes = [call for call in calls if getattr(call, "__func__", None) is flush]
        assert len(flushes) == 1
        for ws in sockets:
            await ws.__aexit__(None, None, None)


async def test_a_client_that_does_not_read_holds_a_bounded_amount_and_its_senders_wait() -> None:
    stuck: asyncio.Future[Line] = asyncio.get_running_loop().create_future()
    left = asyncio.Event()

    async def lane(send: Any, sent: list[int]) -> None:
        while True:
            await send(b"x" * 1000)
            sent[0] += 1

    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        send = frame_sender(websocket).send_frame
        line = websocket.scope["extensions"]["jitney.frames"]["sender"]
        sent = [0]
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(16):
                    tasks.create_task(lane(send, sent))
                before = -1
                while before != sent[0]:
                    before = sent[0]
                    await asyncio.sleep(0.05)
                stuck.set_result(line)
        except* WebSocketDisconnect:
            left.set()

    async with serving(handler) as url:
        async with RawWebSocket(url):
            line = await asyncio.wait_for(stuck, 60)
            held = line._transport.get_write_buffer_size() + line.held_bytes
            assert held <= 2 * MAX_HELD_BYTES + 2000
        await asyncio.wait_for(left.wait(), 60)


async def test_who_has_said_all_still_hears_the_rest(way: str) -> None:
    """A client that ends its side while a long frame is on its way to it."""
    sent = asyncio.Event()

    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive()
        line = websocket.scope["extensions"]["jitney.frames"]["sender"]
        connection = line._transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        line.put_frame(b"x" * 60_000)
        sent.set()
        with suppress(WebSocketDisconnect):
            await websocket.receive_text()

    async with serving(handler) as url, RawWebSocket(url) as ws:
        ws.writer.transport.pause_reading()  # type: ignore[attr-defined]
        ws.write(frame(TEXT, b"go"))
        await sent.wait()
        ws.writer.write_eof()
        await asyncio.sleep(0)
        ws.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await asyncio.wait_for(ws.reader.readexactly(60_004), 60) == frame(
            TEXT, b"x" * 60_000, masked=False
        )


BIG = 100_001


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(TEXT, b"\xff\xfe"), 1007),
        (frame(TEXT, "é".encode()[:1]), 1007),
        (frame(TEXT, b"\xc3", fin=False) + frame(CONT, b"\x28"), 1007),
        (frame(TEXT, b"\xed\xa0\x80"), 1007),
        (frame(TEXT, b"x", reserved=4), 1002),
        (frame(TEXT, b"x", reserved=1), 1002),
        (frame(TEXT, b"x", masked=False), 1002),
        (frame(3, b"x"), 1002),
        (frame(11, b"x"), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(PING, b"x", fin=False), 1002),
        (frame(CLOSE, b"\x03\xe8", fin=False), 1002),
        (frame(CLOSE, b"\x03"), 1002),
        (frame(CLOSE, b"\x03\xe8\xff"), 1007),
        (frame(CLOSE, b"\x03\xed"), 1002),
        (frame(CLOSE, b"\x03\xe8"), 1000),
        (frame(CLOSE), 1005),
        (frame(CONT, b"x"), 1002),
        (frame(TEXT, b"x", fin=False) + frame(TEXT, b"x"), 1002),
        (frame(TEXT, b"x" * BIG), 1009),
        (frame(BINARY, b"x" * BIG * 1000)[:20], 1009),
        (frame(TEXT, b"x" * 60_000, fin=False) + frame(CONT, b"x" * 60_000), 1009),
        (frame(TEXT, b"", fin=False) + frame(CONT, b"x", fin=False) * BIG, 1009),
    ],
    ids=range(23),
)
async def test_broken_traffic_is_closed_with_the_right_code(
    sent: bytes, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(listen) as url:
        async with RawWebSocket(url) as ws:
            ws.write(sent)
            assert await asyncio.wait_for(ws.close_code(), 60) == code
        async with RawWebSocket(url) as ws:  # it still serves
            ws.write(frame(TEXT, b"still there?"))
            assert await ws.read() == (TEXT, b"ok")
    assert not [record for record in caplog.records if record.exc_info], (
        "no client fills the log with tracebacks"
    )


@pytest.mark.parametrize(
    ("sent", "replies"),
    [
        (frame(TEXT, b"x" * 100_000), [(TEXT, b"ok")]),
        (
            frame(TEXT, b"a", fin=False) + frame(PING, b"p") + frame(CONT, b"b"),
            [(PONG, b"p"), (TEXT, b"ok")],
        ),
        (frame(TEXT, b"", fin=False) + frame(CONT), [(TEXT, b"ok")]),
        (frame(PONG, b"nobody asked") + frame(BINARY, b"\xff"), [(TEXT, b"ok")]),
    ],
)
async def test_unusual_traffic_is_answered(sent: bytes, replies: list[Any]) -> None:
    async with serving(listen) as url, RawWebSocket(url) as ws:
        ws.write(sent)
        assert [await ws.read() for _ in replies] == replies


async def test_half_a_frame_and_then_silence_is_closed_by_the_keepalive() -> None:
    async with serving(listen, ws_ping_interval=0.05, ws_ping_timeout=0.05) as url:
        async with RawWebSocket(url) as ws:
            ws.write(frame(TEXT, b"x" * 1000)[:50])
            assert await asyncio.wait_for(ws.close_code(), 60) == 1011


async def test_a_message_in_a_hundred_thousand_fragments_costs_what_it_holds() -> None:
    process = psutil.Process(os.getpid())
    async with serving(listen, ws_max_size=2**20) as url, RawWebSocket(url) as ws:
        fragments = frame(CONT, b"x", fin=False) * 10_000
        before = process.memory_info().rss
        ws.write(frame(TEXT, b"x", fin=False))
        for _ in range(10):
            ws.write(fragments)
            await ws.writer.drain()
        ws.write(frame(CONT))
        assert await asyncio.wait_for(ws.read(), 60) == (TEXT, b"ok")
        assert process.memory_info().rss - before < 20 * 2**20


async def test_a_flood_of_pings_that_reads_no_pongs_is_cut_off() -> None:
    async with serving(listen) as url, RawWebSocket(url) as ws:
        flood = frame(PING, b"x" * 125) * 1000
        ws.writer.transport.pause_reading()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionError):
            for _ in range(2000):
                ws.write(flood)
                await ws.writer.drain()


async def test_a_flood_of_small_frames_is_read_a_little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    receive = FrameProtocol.data_received

    def counted(self: FrameProtocol, data: bytes) -> None:
        reads.append(len(data))
        receive(self, data)

    monkeypatch.setattr(FrameProtocol, "data_received", counted)
    async with serving(listen) as url, RawWebSocket(url) as ws:
        ws.write(frame(PONG) * 100_000 + frame(TEXT, b"x"))
        assert await asyncio.wait_for(ws.read(), 60) == (TEXT, b"ok")
    assert sum(reads) >= 600_000 and max(reads[1:]) <= READ_BYTES
