"""A pickle read as data. This interpreter of pickle's opcodes has none that calls anything: a global becomes a `Name`,
a construction becomes a `Record` of its parts, and only our own builders, chosen by name, make something of them. So
there is no code that a pickle could run. A name that the builders do not know refuses the whole pickle.

Protocols 2 to 5, as torch writes them. Opcodes of protocols 0 and 1 alone, persistent ids without a reader, and the
extension registry are refused.
"""

from __future__ import annotations

import reprlib
import struct
from collections.abc import Callable
from typing import Any

MAX_OBJECTS = 20_000_000
"""Made by one pickle: it bounds the memory that a small file can ask for."""
MAX_INTEGER_BYTES = 64


class Refused(ValueError):
    """The pickle is malformed, or names what is not data."""


class Name:
    """A global that a pickle mentions; nothing is imported."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path


class Record:
    """An object that was not made: the name of its class, the arguments, the state, and what was put into it."""

    __slots__ = ("name", "args", "state", "items")

    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        self.name = name
        self.args = args
        self.state: Any = None
        self.items: list[Any] = []

    def fields(self) -> dict[str, Any]:
        """The attributes that its state sets."""
        state = self.state[0] if isinstance(self.state, tuple) and len(self.state) == 2 else self.state
        return state if isinstance(state, dict) else {}


Builder = Callable[[tuple[Any, ...]], Any]
INERT: Builder = tuple
"""The builder of what stays a `Record`."""


class _Mark:
    pass


_MARK = _Mark()
_SCALARS = {ord("J"): "<i", ord("K"): "<B", ord("M"): "<H", ord("G"): ">d"}
_TEXTS = {ord("X"): "<I", 0x8C: "<B", 0x8D: "<Q"}
_BYTES = {ord("B"): "<I", ord("C"): "<B", 0x8E: "<Q", 0x96: "<Q"}
_LATIN = {ord("T"): "<i", ord("U"): "<B"}
_INTEGERS = {0x8A: "<B", 0x8B: "<i"}
_GETS = {ord("h"): "<B", ord("j"): "<I"}
_PUTS = {ord("q"): "<B", ord("r"): "<I"}
_CONSTANTS = {ord("N"): None, 0x88: True, 0x89: False, ord(")"): ()}
_EMPTY: dict[int, Callable[[], Any]] = {ord("]"): list, ord("}"): dict, 0x8F: set}
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
_PROTO, _FRAME, _STOP = 0x80, 0x95, ord(".")


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
        self._verbs: dict[int, Callable[[], None]] = {
            ord("("): lambda: self._push(_MARK),
            ord("0"): lambda: self._drop(),
            ord("1"): lambda: self._drop_mark(),
            ord("2"): lambda: self._push(self._top()),
            ord("a"): lambda: self._extend([self._pop()]),
            ord("e"): lambda: self._extend(self._marked()),
            ord("s"): lambda: self._set_items([self._pop(), self._pop()][::-1]),
            ord("u"): lambda: self._set_items(self._marked()),
            0x90: lambda: self._add(self._marked()),
            ord("t"): lambda: self._push(tuple(self._marked())),
            0x91: lambda: self._push(frozenset(map(_key, self._marked()))),
            ord("c"): lambda: self._push(self._name(self._line(), self._line())),
            0x93: lambda: self._push(self._name(*[self._pop(), self._pop()][::-1])),
            ord("R"): lambda: self._construct(self._pop()),
            0x81: lambda: self._construct(self._pop()),
            0x92: lambda: self._construct_by_keyword(),
            ord("b"): lambda: self._build(self._pop()),
            ord("Q"): lambda: self._push_persistent(self._pop()),
            0x94: lambda: self._put(len(self._memo)),
        }

    def read(self) -> Any:
        """The object. Raises `Refused`."""
        while True:
            code = self._take(1)[0]
            if code == _STOP:
                return self._pop()
            if code in self._verbs:
                self._verbs[code]()
            else:
                self._read_value(code)

    def _read_value(self, code: int) -> None:
        if code in _TEXTS:
            self._push(_text(self._sized(_TEXTS[code]), "utf-8"))
        elif code in _GETS:
            self._stack.append(self._get(self._scalar(_GETS[code])))
        elif code in _PUTS:
            self._put(self._scalar(_PUTS[code]))
        elif code in _SCALARS:
            self._push(self._scalar(_SCALARS[code]))
        elif code in _TUPLES:
            self._push(tuple([self._pop() for _ in range(_TUPLES[code])][::-1]))
        elif code in _CONSTANTS:
            self._push(_CONSTANTS[code])
        elif code in _EMPTY:
            self._push(_EMPTY[code]())
        elif code in _BYTES:
            self._push(self._sized(_BYTES[code]))
        elif code in _LATIN:
            self._push(_text(self._sized(_LATIN[code]), "latin-1"))
        elif code in _INTEGERS:
            self._push(int.from_bytes(self._sized(_INTEGERS[code], MAX_INTEGER_BYTES), "little", signed=True))
        elif code == _PROTO:
            if not 2 <= self._take(1)[0] <= 5:
                raise Refused("expected a pickle of protocol 2 to 5")
        elif code == _FRAME:
            self._take(8)
        else:
            raise Refused(f"opcode {bytes([code])!r} at byte {self._at - 1} is not one that data needs")

    def _take(self, count: int) -> bytes:
        start = self._at
        if not 0 <= count <= len(self._data) - start:
            raise Refused(f"{count} bytes are expected at byte {start}, {len(self._data) - start} are left")
        self._at += count
        return self._data[start : self._at]

    def _scalar(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _sized(self, layout: str, most: int | None = None) -> bytes:
        size = self._scalar(layout)
        if most is not None and size > most:
            raise Refused(f"an integer of {size} bytes at byte {self._at}")
        return self._take(size)

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

    def _drop_mark(self) -> None:
        self._marked()

    def _marked(self) -> list[Any]:
        """What was pushed since the last mark, which is taken off too."""
        for at in range(len(self._stack) - 1, -1, -1):
            if self._stack[at] is _MARK:
                items = self._stack[at + 1 :]
                del self._stack[at:]
                return items
        raise Refused(f"no mark before byte {self._at}")

    def _get(self, index: int) -> Any:
        if index not in self._memo:
            raise Refused(f"nothing was stored as {index}")
        return self._memo[index]

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

    def _construct_by_keyword(self) -> None:
        keywords, args = self._pop(), self._pop()
        self._construct((args, keywords))

    def _build(self, state: Any) -> None:
        target = self._top()
        if isinstance(target, Record):
            target.state = state

    def _push_persistent(self, identity: Any) -> None:
        if self._persistent is None:
            raise Refused("a persistent id, where none is expected")
        self._push(self._persistent(identity))


def shown(value: Any) -> str:
    """A value for a message: short, and no deeper than a few levels, whatever a file made of it."""
    return value.name[:80] if isinstance(value, Record) else reprlib.repr(value)[:80]


def _text(raw: bytes, encoding: str) -> str:
    try:
        return raw.decode(encoding, "surrogatepass")
    except UnicodeDecodeError as error:
        raise Refused(f"a text that is not {encoding}: {error.reason}") from None


def _key(key: Any) -> Any:
    """A key that hashes in bounded time: a scalar, a flat tuple of scalars, or one of our own objects. Larger integers
    would let a file choose which keys collide."""
    for part in key if isinstance(key, tuple) else (key,):
        plain = isinstance(part, (str, bytes, float, Name, Record, type(None)))
        if not plain and not (isinstance(part, int) and abs(part) < 2**60):
            raise Refused(f"a key that is a {type(part).__name__}, or too large")
    return key
