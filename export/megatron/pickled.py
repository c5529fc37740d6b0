"""A pickle read as data. This interpreter of pickle's opcodes has none that calls anything: a global becomes a `Name`,
a construction becomes a `Record` of its parts, and only our own builders, chosen by name, make something of them. So
there is no code that a pickle could run. A name that the builders do not know refuses the whole pickle.

Protocols 2 to 5, as torch writes them. Opcodes of protocols 0 and 1 alone, persistent ids without a reader, and the
extension registry are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from .records import INERT, Builder, Name, Record, Refused

MAX_OBJECTS = 20_000_000
"""Made by one pickle: it bounds the memory that a small file can ask for."""
MAX_INTEGER_BYTES = 64


class _Mark:
    pass


_MARK = _Mark()
_U8, _U16, _U32, _U64 = (struct.Struct(f"<{code}") for code in "BHIQ")
_I32, _F64 = struct.Struct("<i"), struct.Struct(">d")


class PickleReader:
    """Reads one pickle. `builder(path)` gives what makes an object of that name from its arguments, `INERT` where it
    stays a record, or None to refuse it; `persistent(id)` what stands for a persistent id."""

    def __init__(
        self, data: bytes, builder: Callable[[str], Builder | None], persistent: Callable[[Any], Any] | None
    ) -> None:
        self._data = data
        self._builder = builder
        self._persistent = persistent
        self._at = 0
        self._made = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """The object. Raises `Refused`."""
        data = self._data
        while self._at < len(data):
            code = data[self._at]
            self._at += 1
            if code == _STOP:
                return self._pop()
            verb = _VERBS.get(code)
            if verb is None:
                raise Refused(f"opcode {bytes([code])!r} at byte {self._at - 1} is not one that data needs")
            verb(self)
        raise Refused("it ends before its end")

    def _take(self, count: int) -> bytes:
        start = self._at
        if not 0 <= count <= len(self._data) - start:
            raise Refused(f"{count} bytes are expected at byte {start}, {len(self._data) - start} are left")
        self._at += count
        return self._data[start : self._at]

    def _scalar(self, layout: struct.Struct) -> Any:
        try:
            (value,) = layout.unpack_from(self._data, self._at)
        except struct.error:
            raise Refused(f"{layout.size} bytes are expected at byte {self._at}, fewer are left") from None
        self._at += layout.size
        return value

    def _sized(self, layout: struct.Struct) -> bytes:
        return self._take(self._scalar(layout))

    def _integer(self, layout: struct.Struct) -> int:
        size = self._scalar(layout)
        if size > MAX_INTEGER_BYTES:
            raise Refused(f"an integer of {size} bytes at byte {self._at}")
        return int.from_bytes(self._take(size), "little", signed=True)

    def _tuple(self, size: int) -> tuple[Any, ...]:
        return tuple([self._pop() for _ in range(size)][::-1])

    def _line(self) -> str:
        end = self._data.find(b"\n", self._at, self._at + 1024)
        if end < 0:
            raise Refused(f"a name without an end at byte {self._at}")
        return _text(self._take(end + 1 - self._at)[:-1], "utf-8")

    def _push(self, value: Any) -> None:
        self._made += 1
        if self._made > MAX_OBJECTS:
            raise Refused(f"more than {MAX_OBJECTS} objects")
        self._stack.append(value)

    def _pop(self) -> Any:
        value = self._top()
        self._stack.pop()
        return value

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise Refused(f"the stack is empty at byte {self._at}")
        return self._stack[-1]

    def _drop(self) -> None:
        if not self._stack:
            raise Refused(f"the stack is empty at byte {self._at}")
        self._stack.pop()

    def _marked(self) -> list[Any]:
        """What was pushed since the last mark, which is taken off too."""
        for at in range(len(self._stack) - 1, -1, -1):
            if self._stack[at] is _MARK:
                items = self._stack[at + 1 :]
                del self._stack[at:]
                return items
        raise Refused(f"no mark before byte {self._at}")

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise Refused(f"nothing was stored as {index}")
        self._stack.append(self._memo[index])

    def _put(self, index: int) -> None:
        self._memo[index] = self._top()

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Record):
            target.items.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise Refused(f"items for a {type(target).__name__} at byte {self._at}")

    def _set_items(self, flat: list[Any]) -> None:
        target = self._top()
        if len(flat) % 2 or not isinstance(target, (dict, Record)):
            raise Refused(f"pairs for a {type(target).__name__} at byte {self._at}")
        pairs = zip(flat[::2], flat[1::2], strict=True)
        if isinstance(target, Record):
            target.items.extend(pairs)
        else:
            target.update((_key(key), value) for key, value in pairs)

    def _add(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, set):
            raise Refused(f"members for a {type(target).__name__} at byte {self._at}")
        target.update(map(_key, items))

    def _name(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused(f"a name that is no text at byte {self._at}")
        path = f"{module}.{name}"
        if self._builder(path) is None:
            raise Refused(f"it names {path[:200]}, which is not data of a checkpoint")
        return Name(path)

    def _construct(self, args: Any) -> None:
        target = self._pop()
        if not isinstance(target, Name) or not isinstance(args, tuple):
            raise Refused(f"a call of a {type(target).__name__} at byte {self._at}")
        builder = self._builder(target.path)
        if builder is None:
            raise Refused(f"it calls {target.path[:200]}")
        self._push(Record(target.path, args) if builder is INERT else builder(args))

    def _build(self, state: Any) -> None:
        target = self._top()
        if isinstance(target, Record):
            target.state = state

    def _protocol(self) -> None:
        if not 2 <= self._scalar(_U8) <= 5:
            raise Refused("expected a pickle of protocol 2 to 5")

    def _push_persistent(self, identity: Any) -> None:
        if self._persistent is None:
            raise Refused("a persistent id, where none is expected")
        self._push(self._persistent(identity))


def _text(raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding, "surrogatepass")
    except UnicodeDecodeError as error:
        raise Refused(f"a text that is not {encoding}: {error.reason}") from None


def _key(key: Any) -> Any:
    """A key that hashes in bounded time: a scalar, a flat tuple of scalars, or one of our own objects. Larger integers
    would let a file choose which keys collide."""
    if type(key) is str:
        return key
    for part in key if isinstance(key, tuple) else (key,):
        plain = isinstance(part, (str, bytes, float, Name, Record, type(None)))
        if not plain and not (isinstance(part, int) and abs(part) < 2**60):
            raise Refused(f"a key that is a {type(part).__name__}, or too large")
    return key


Verb = Callable[[PickleReader], object]


def _push(value: Callable[[PickleReader], Any]) -> Verb:
    return lambda reader: reader._push(value(reader))


def _push_text(size: struct.Struct, encoding: str = "utf-8") -> Verb:
    return lambda reader: reader._push(_text(reader._sized(size), encoding))


_STOP = ord(".")
_VERBS: dict[int, Verb] = {
    0x80: lambda reader: reader._protocol(),
    0x95: lambda reader: reader._take(8),  # a frame's length
    ord("N"): _push(lambda _: None),
    0x88: _push(lambda _: True),
    0x89: _push(lambda _: False),
    ord("K"): _push(lambda reader: reader._scalar(_U8)),
    ord("M"): _push(lambda reader: reader._scalar(_U16)),
    ord("J"): _push(lambda reader: reader._scalar(_I32)),
    ord("G"): _push(lambda reader: reader._scalar(_F64)),
    0x8A: _push(lambda reader: reader._integer(_U8)),
    0x8B: _push(lambda reader: reader._integer(_I32)),
    0x8C: _push_text(_U8),
    ord("X"): _push_text(_U32),
    0x8D: _push_text(_U64),
    ord("U"): _push_text(_U8, "latin-1"),
    ord("T"): _push_text(_I32, "latin-1"),
    ord("C"): _push(lambda reader: reader._sized(_U8)),
    ord("B"): _push(lambda reader: reader._sized(_U32)),
    0x8E: _push(lambda reader: reader._sized(_U64)),
    0x96: _push(lambda reader: reader._sized(_U64)),
    ord("]"): _push(lambda _: []),
    ord("}"): _push(lambda _: {}),
    0x8F: _push(lambda _: set()),
    ord(")"): _push(lambda _: ()),
    0x85: _push(lambda reader: reader._tuple(1)),
    0x86: _push(lambda reader: reader._tuple(2)),
    0x87: _push(lambda reader: reader._tuple(3)),
    ord("t"): _push(lambda reader: tuple(reader._marked())),
    0x91: _push(lambda reader: frozenset(map(_key, reader._marked()))),
    ord("a"): lambda reader: reader._extend([reader._pop()]),
    ord("e"): lambda reader: reader._extend(reader._marked()),
    ord("s"): lambda reader: reader._set_items(list(reader._tuple(2))),
    ord("u"): lambda reader: reader._set_items(reader._marked()),
    0x90: lambda reader: reader._add(reader._marked()),
    ord("("): _push(lambda _: _MARK),
    ord("0"): lambda reader: reader._drop(),
    ord("1"): lambda reader: reader._marked(),
    ord("2"): _push(lambda reader: reader._top()),
    ord("h"): lambda reader: reader._get(reader._scalar(_U8)),
    ord("j"): lambda reader: reader._get(reader._scalar(_U32)),
    ord("q"): lambda reader: reader._put(reader._scalar(_U8)),
    ord("r"): lambda reader: reader._put(reader._scalar(_U32)),
    0x94: lambda reader: reader._put(len(reader._memo)),
    ord("c"): _push(lambda reader: reader._name(reader._line(), reader._line())),
    0x93: _push(lambda reader: reader._name(*reader._tuple(2))),
    ord("R"): lambda reader: reader._construct(reader._pop()),
    0x81: lambda reader: reader._construct(reader._pop()),
    0x92: lambda reader: reader._construct(reader._tuple(2)),
    ord("b"): lambda reader: reader._build(reader._pop()),
    ord("Q"): lambda reader: reader._push_persistent(reader._pop()),
}
"""By opcode. What protocols 0 and 1 alone have, the extension registry and out-of-band buffers are not here."""
