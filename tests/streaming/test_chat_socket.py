"""`/v1/chat/ws` over a real server: answers, aborts, resumes, two readers of one answer, instructions, bad clients."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from jitney.runtime.errors import RequestError
from jitney.runtime.testing import Reply
from jitney.streaming.principal import Principal
from jitney.streaming.protocols.generate import Generate


def dial(served: Any, **options: Any) -> Any:
    url = served.url.replace("http", "ws") + "/v1/chat/ws"
    return connect(url, **{"proxy": None, "close_timeout": 0.1, **options})


async def send(
    socket: ClientConnection, text: str, request_id: str = "r", chat: str = "c", **fields: Any
) -> None:
    messages = [{"id": "u", "role": "user", "parts": [{"type": "text", "text": text}]}]
    frame = {
        "type": "send",
        "requestId": request_id,
        "id": chat,
        "trigger": "submit-message",
        "messages": messages,
        "headers": {},
        "body": {},
        **fields,
    }
    await socket.send(json.dumps(frame))


async def resume(socket: ClientConnection, request_id: str, chat: str = "c") -> None:
    frame = {"type": "resume", "requestId": request_id, "id": chat, "headers": {}, "body": {}}
    await socket.send(json.dumps(frame))


async def abort(socket: ClientConnection, request_id: str) -> None:
    await socket.send(json.dumps({"type": "abort", "requestId": request_id}))


class Heard:
    """What one request was told, with its numbers checked as the SDK checks them."""

    def __init__(self) -> None:
        self.chunks: list[dict[str, Any]] = []
        self.ended: dict[str, Any] | None = None
        self.was_confirmed = False

    def take(self, frame: dict[str, Any]) -> None:
        assert self.ended is None
        if frame["type"] == "chunk":
            assert frame["sequence"] == len(self.chunks)
            self.chunks.append(frame["chunk"])
        elif frame["type"] == "start":
            assert not self.chunks
            self.was_confirmed = True
        else:
            self.ended = frame

    @property
    def text(self) -> str:
        return "".join(chunk["delta"] for chunk in self.chunks if chunk["type"] == "text-delta")

    @property
    def message_id(self) -> str:
        return str(next(chunk["messageId"] for chunk in self.chunks if chunk["type"] == "start"))


async def listen(
    socket: ClientConnection, until: Any, heard: dict[str, Heard] | None = None
) -> dict[str, Heard]:
    """Everything heard, with what was heard before, until the condition on it holds."""
    heard = heard or {}
    async with asyncio.timeout(60):
        while not until(heard):
            frame = json.loads(await socket.recv())
            heard.setdefault(frame["requestId"], Heard()).take(frame)
    return heard


def ended(*names: str) -> Any:
    return lambda heard: all(name in heard and heard[name].ended for name in names)


def spoke(name: str) -> Any:
    return lambda heard: name in heard and len(heard[name].text) > 20


async def whole(socket: ClientConnection, name: str = "r") -> Heard:
    return (await listen(socket, ended(name)))[name]


async def test_two_chats_on_one_socket(serving: Any) -> None:
    async with serving() as served, dial(served) as socket:
        await send(socket, "sky", "a", "one", metadata={"x": 1}, messageId="m")
        await send(socket, "hello", "b", "two", body={"max_tokens": 3})
        heard = await listen(socket, ended("a", "b"))
        assert heard["a"].text == "Rayleigh scattering." and heard["a"].ended == {
            "type": "end",
            "requestId": "a",
        }
        assert heard["b"].text == "hel"
        assert heard["b"].chunks[-1]["finishReason"] == "length"
        about = heard["a"].chunks[-1]["messageMetadata"]
        assert about["usage"]["outputTokens"] == 21 and about["timeToFirstTokenMs"] > 0
        assert heard["a"].chunks[0]["messageMetadata"]["model"] == "scripted"


async def test_an_abort_frees_the_seat_and_the_chat(serving: Any) -> None:
    async with serving() as served, dial(served) as socket:
        await send(socket, "slow")
        await listen(socket, spoke("r"))
        await abort(socket, "r")
        await served.until_idle()
        assert served.engine.stats().finished == {"cancelled": 1}
        await abort(socket, "r")
        await abort(socket, "never")
        await send(socket, "sky", "r2")
        assert (await whole_after_others(socket, "r2")).text == "Rayleigh scattering."


async def test_an_aborted_request_hears_no_more(serving: Any) -> None:
    async with serving() as served, dial(served) as socket:
        await send(socket, "slow")
        await listen(socket, spoke("r"))
        await abort(socket, "r")
        await send(socket, "sky", "r2")
        async with asyncio.timeout(60):
            while (frame := json.loads(await socket.recv()))["requestId"] == "r":
                assert frame["type"] == "chunk" and frame["chunk"]["type"] == "text-delta"


async def whole_after_others(socket: ClientConnection, name: str) -> Heard:
    """Of a request beside one that was aborted: what was on its way when the abort came is let pass."""
    heard = Heard()
    async with asyncio.timeout(60):
        while heard.ended is None:
            frame = json.loads(await socket.recv())
            if frame["requestId"] == name:
                heard.take(frame)
    return heard


async def test_an_abort_before_the_answer_has_begun(serving: Any) -> None:
    async with serving(config={"max_rows": 1}) as served, dial(served) as socket:
        for number in range(20):
            await send(socket, "slow", f"r{number}")
            await abort(socket, f"r{number}")
        await served.until_idle()
        await send(socket, "sky", "last")
        assert (await whole_after_others(socket, "last")).text == "Rayleigh scattering."


async def test_a_chat_has_one_live_answer(serving: Any) -> None:
    async with serving() as served, dial(served) as socket, dial(served) as other:
        await send(socket, "slow", "a")
        await send(socket, "slow", "b")
        heard = await listen(socket, ended("b"))
        assert heard["b"].ended["type"] == "error" and "resume" in heard["b"].ended["errorText"]
        await send(other, "slow", "a")
        assert (await whole(other, "a")).ended["type"] == "error"
        await abort(socket, "a")
        await served.until_idle()


async def test_a_dropped_answer_goes_on_and_is_replayed_whole(serving: Any) -> None:
    text = "tock " * 100
    async with serving(Reply(match="long", text=text, token_s=0.002)) as served:
        async with dial(served) as socket:
            await send(socket, "long")
            first = (await listen(socket, spoke("r")))["r"]
            socket.transport.abort()
        async with dial(served) as socket:
            await resume(socket, "again")
            live = await whole(socket, "again")
        async with dial(served) as socket:
            await resume(socket, "late")
            late = await whole(socket, "late")
        for heard in (live, late):
            assert heard.was_confirmed and heard.text == text and heard.message_id == first.message_id
            assert heard.chunks[0]["messageMetadata"]["requestId"] == "r"
            assert heard.chunks[-1]["type"] == "finish"
        assert served.engine.stats().finished == {"stop_token": 1}


@pytest.mark.parametrize("num_chats", [100, pytest.param(1000, marks=pytest.mark.large)])
async def test_chats_cut_at_random_places_are_replayed_whole(serving: Any, num_chats: int) -> None:
    """Each chat's socket is cut 1 to 5 times, wherever it happens to be; nothing is missing and nothing is doubled."""
    rng = random.Random(num_chats)
    text = "".join(f"{number} " for number in range(60))
    config = {"max_rows": 32, "max_queued": num_chats}

    async def cut(served: Any, chat: str, num_cuts: int) -> tuple[str, str, str]:
        first = ""
        for attempt in range(num_cuts):
            async with dial(served) as socket:
                if not attempt:
                    await send(socket, "count", chat=chat)
                    first = (await listen(socket, lambda heard: heard and heard["r"].chunks))["r"].message_id
                else:
                    await resume(socket, "r", chat)
                for _ in range(rng.randrange(40)):
                    if "end" in json.loads(await socket.recv())["type"]:
                        break
                socket.transport.abort()
        async with dial(served) as socket:
            await resume(socket, "r", chat)
            heard = await whole(socket)
        return first, heard.message_id, heard.text

    async with serving(Reply(match="count", text=text, token_s=0.001), config=config) as served:
        chats = [cut(served, f"chat {number}", rng.randrange(1, 6)) for number in range(num_chats)]
        for first, last, said in await asyncio.gather(*chats):
            assert first == last and said == text
        assert served.engine.stats().finished == {"stop_token": num_chats}


async def test_two_readers_of_one_answer_and_either_may_end_it(serving: Any) -> None:
    async with serving() as served, dial(served) as first, dial(served) as second:
        await send(first, "slow", "a")
        await listen(first, spoke("a"))
        await resume(second, "b")
        seen = (await listen(second, spoke("b")))["b"]
        assert seen.text.startswith("tick ")
        await abort(second, "b")
        async with asyncio.timeout(60):
            while json.loads(await first.recv())["type"] != "end":
                pass
        await served.until_idle()


async def test_a_resume_of_a_request_that_was_stopped_while_offline(serving: Any) -> None:
    async with serving() as served:
        async with dial(served) as socket:
            await send(socket, "slow")
            await listen(socket, spoke("r"))
        async with dial(served) as socket:
            await resume(socket, "r")
            await abort(socket, "r")
            await served.until_idle()
        assert served.engine.stats().finished == {"cancelled": 1}


async def test_nothing_to_resume(serving: Any) -> None:
    async with serving() as served, dial(served) as socket:
        await resume(socket, "r", "never")
        assert (await whole(socket)).ended == {"type": "no-active", "requestId": "r"}
        await send(socket, "sky", body={"temperature": 9})
        assert "temperature" in (await whole(socket)).ended["errorText"]
        await resume(socket, "r")
        assert (await whole(socket)).ended["type"] == "no-active", "what was refused is not there"


async def test_another_principal_sees_nothing_of_a_chat(serving: Any) -> None:
    async with serving(api_key="secret") as served:
        alice = {"Authorization": "Bearer secret", "Jitney-User": "alice"}
        bob = {"Authorization": "Bearer secret", "Jitney-User": "bob"}
        async with (
            dial(served, additional_headers=alice) as hers,
            dial(served, additional_headers=bob) as his,
        ):
            await send(hers, "slow")
            await listen(hers, spoke("r"))
            await resume(his, "r")
            assert (await whole(his)).ended["type"] == "no-active"
            await send(his, "sky", "r2")
            assert (await whole(his, "r2")).text == "Rayleigh scattering."
            await abort(hers, "r")
        await served.until_idle()


async def test_on_disconnect_cancel(serving: Any) -> None:
    async with serving() as served:
        async with dial(served) as socket:
            await send(socket, "slow", body={"jitney": {"on_disconnect": "cancel"}})
            await listen(socket, spoke("r"))
        await served.until_idle()
        assert served.engine.stats().finished == {"cancelled": 1}


async def test_a_fault_is_told_and_replayed(serving: Any) -> None:
    async with serving() as served, dial(served) as socket:
        await send(socket, "broken")
        first = await whole(socket)
        await resume(socket, "again")
        again = await whole(socket, "again")
        for heard in (first, again):
            assert heard.text == "half a" and "script failed" in heard.chunks[-1]["errorText"]


def told(heard: dict[str, Heard], name: str = "c") -> list[Any]:
    chunks = heard[name].chunks if name in heard else []
    return [chunk["data"] for chunk in chunks if chunk["type"] == "data-status"]


async def test_silence_is_filled_with_status(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jitney.streaming.chat_socket.STATUS_S", 0.01)
    replies = (
        Reply(match="late", text="at last", first_token_s=0.1),
        Reply(match="first", text="x", first_token_s=0.3),
    )
    async with serving(*replies, config={"max_rows": 1}) as served, dial(served) as socket:
        served.pace.hold()
        await send(socket, "first", "a", "one")
        await send(socket, "late", "b", "two")
        await send(socket, "late", "c", "three")
        served.pace.hold(0.45)  # the first two have ended then, and the third waits for its first token
        heard = await listen(socket, lambda heard: "prefill" in {state["state"] for state in told(heard)})
        served.pace.go()
        heard = await listen(socket, ended("b", "c"), heard)
        states = told(heard)
        assert {"queued", "prefill"} <= {state["state"] for state in states}
        assert states[-1]["promptTokens"] > 0
        assert heard["c"].text == "at last"


async def test_the_servers_instructions(serving: Any) -> None:
    """A script echoes the last user message, so the prompt's length shows what was put before it."""
    async with serving(system="Be kind. " * 20) as served, dial(served) as socket:
        await send(socket, "hello")
        heard = await whole(socket)
        assert heard.text == "hello"
        assert heard.chunks[-1]["messageMetadata"]["usage"]["inputTokens"] > 180
        assert "kind" not in json.dumps(heard.chunks)
        mine = [{"role": role, "parts": [{"type": "text", "text": "x"}]} for role in ("system", "user")]
        await send(socket, "", "r2", messages=mine)
        assert "messages[0].role" in (await whole(socket, "r2")).ended["errorText"]


@pytest.mark.parametrize("is_async", [False, True])
async def test_prepare_rewrites_and_refuses(serving: Any, is_async: bool) -> None:
    def prepare(generate: Generate, principal: Principal) -> Generate:
        if "forbidden" in str(generate.prompt):
            raise RequestError("no", field="messages")
        return msgspec.structs.replace(generate, prompt=[{"role": "user", "content": "sky"}])

    async def prepare_later(generate: Generate, principal: Principal) -> Generate:
        await asyncio.sleep(0)
        return prepare(generate, principal)

    async with serving(prepare=prepare_later if is_async else prepare) as served, dial(served) as socket:
        await send(socket, "anything")
        assert (await whole(socket)).text == "Rayleigh scattering."
        await send(socket, "forbidden", "r2", "other")
        assert (await whole(socket, "r2")).ended == {"type": "error", "requestId": "r2", "errorText": "no"}


@pytest.mark.parametrize(("frame", "code"), [("{", 1008), ('{"type": "abort"}', 1008), ("x" * 1001, 1009)])
async def test_what_is_not_of_the_protocol_closes_the_socket(serving: Any, frame: str, code: int) -> None:
    async with serving(max_frame_bytes=1000) as served, dial(served) as socket:
        await socket.send(frame)
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == code


async def test_a_slow_reader_gets_merged_deltas(serving: Any) -> None:
    text = "tock " * 4000
    async with serving(Reply(match="long", text=text), config={}) as served:
        async with dial(served, max_queue=1) as slow:
            slow.transport.pause_reading()
            await send(slow, "long", body={"max_tokens": 8000})
            await served.until(lambda stats: sum(stats.finished.values()) == 1)
            slow.transport.resume_reading()
            heard = await whole(slow)
            assert heard.text == text[: len(heard.text)] and len(heard.text) > 7000
            assert len(heard.chunks) < len(heard.text)
