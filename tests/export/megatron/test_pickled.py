"""Pickles as data: what torch and Megatron write is read; what could run code is refused by name."""

from __future__ import annotations

import argparse
import collections
import contextlib
import pickle
import struct
from typing import Any

import pytest
from hostile_pickles import NAMES, calls
from hypothesis import given, settings
from hypothesis import strategies as st

from jitney.export.megatron.pickled import MAX_OBJECTS, PickleReader
from jitney.export.megatron.records import Name, Record, Refused
from jitney.export.megatron.torch_names import builder

PLAIN: list[Any] = [
    None,
    True,
    [1, -1, 255, 256, 65536, -(2**31), 2**31, -(2**62), 2**70, 1.5, float("inf")],
    {"a": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], 3: "ü\ud800", (1, "b"): None},
    "x" * 300,
    "z" * 70000,
]


def read(data: bytes) -> Any:
    return PickleReader(data, builder, None).read()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", PLAIN, ids=range(len(PLAIN)))
def test_plain_values(value: Any, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("value", [b"y" * 300, {(1, "b"): b"\0\xff"}, {1, 2}, frozenset([3])], ids=str)
def test_bytes_and_sets_are_values_where_the_protocol_has_them(value: Any) -> None:
    assert read(pickle.dumps(value, 4)) == value
    assert isinstance(read(pickle.dumps([value], 2)), list)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KEYS = st.text() | st.integers(-(2**59), 2**59) | st.tuples(st.text(), st.none() | st.booleans())
NESTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner) | st.lists(inner).map(tuple),
    max_leaves=40,
)


@settings(max_examples=200, deadline=None)
@given(NESTS, st.integers(2, 5))
def test_any_nest_of_plain_values(value: Any, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for start in (b"", b"\x80\x02", b"\x80\x04]"):
        with contextlib.suppress(Refused):
            read(start + data)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_shared_and_recursive_values(protocol: int) -> None:
    shared: list[Any] = ["a"]
    loop: list[Any] = [shared, shared, {"k": shared}]
    loop.append(loop)
    found = read(pickle.dumps(loop, protocol))
    assert found[0] is found[1] is found[2]["k"] and found[3] is found


@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_stay_records(protocol: int) -> None:
    namespace = read(pickle.dumps(argparse.Namespace(a=1, b=[2]), protocol))
    assert isinstance(namespace, Record) and namespace.name == "argparse.Namespace"
    assert namespace.fields() == {"a": 1, "b": [2]}
    counted = read(pickle.dumps(collections.defaultdict(list, {"x": 1}), protocol))
    assert isinstance(counted, Record) and counted.items == [("x", 1)]
    assert read(pickle.dumps(collections.OrderedDict(a=1), protocol)) == {"a": 1}
    assert isinstance(read(pickle.dumps(argparse.Namespace, protocol)), Name)


@pytest.mark.parametrize("path", NAMES)
def test_what_could_run_code_is_refused_by_name(path: str) -> None:
    for way, data in calls(path).items():
        with pytest.raises(Refused) as caught:
            read(data)
        if way not in ("instance",):
            assert path[:200] in str(caught.value), way


def test_records_are_never_called() -> None:
    """What is listed is data too: a call of a call, of a text, of a tensor's place is refused."""
    for target in (b"cargparse\nNamespace\n)R", b"X\x01\0\0\0a", b"N", b"]", b"ctorch\nSize\n()\x85R"):
        with pytest.raises(Refused):
            read(b"\x80\x02" + target + b")R.")


BROKEN = {
    "empty": b"",
    "only stop": b".",
    "no mark": b"\x80\x02t.",
    "underflow": b"\x80\x02\x86.",
    "unknown memo": b"\x80\x02h\x07.",
    "text past the end": b"\x80\x02X\xff\xff\xff\x7fa.",
    "huge text": b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b"a.",
    "huge bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"a.",
    "negative text": b"\x80\x02T\xff\xff\xff\xff.",
    "huge integer": b"\x80\x02\x8b\xff\xff\x00\x00" + b"\1" * 65535 + b".",
    "negative integer": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "decimal integer": b"\x80\x02I" + b"9" * 100_000 + b"\n.",
    "bad utf-8": b"\x80\x02X\x01\0\0\0\xff.",
    "protocol 0": pickle.dumps([1, "a"], 0),
    "protocol 6": b"\x80\x06N.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent": b"\x80\x02X\x01\0\0\0aQ.",
    "text persistent": b"\x80\x02Pa\n.",
    "buffer": b"\x80\x05\x97.",
    "list as key": b"\x80\x02}]K\x01s.",
    "list in a set": b"\x80\x04\x8f(]\x90.",
    "nested key": b"\x80\x02}K\x01\x85\x85K\x01s.",
    "items for a text": b"\x80\x02X\x01\0\0\0aK\x01a.",
    "pairs for a list": b"\x80\x02]K\x01K\x02s.",
    "odd pairs": b"\x80\x02}(K\x01u.",
    "stack name of numbers": b"\x80\x04K\x01K\x02\x93.",
    "endless name": b"\x80\x02c" + b"a" * 5000,
    "arguments that are no tuple": b"\x80\x02cargparse\nNamespace\n]R.",
    "mapping from arguments": b"\x80\x02ccollections\nOrderedDict\n]]a\x85R.",
    "size of nothing": b"\x80\x02ctorch\nSize\n)R.",
    "parameter of nothing": b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_broken_pickles(data: bytes) -> None:
    with pytest.raises(Refused):
        read(data)


def test_every_cut_is_refused() -> None:
    whole = pickle.dumps({"a": [argparse.Namespace(x=(1, 2.5, "t"))], "b": {1: b"x" * 300}}, 4)
    for end in range(len(whole)):
        with pytest.raises(Refused):
            read(whole[:end])


def test_deep_and_shared_nests_take_no_recursion_and_no_memory() -> None:
    deep = read(b"\x80\x02N" + b"\x85" * 300_000 + b".")
    assert isinstance(deep, tuple)
    doubling = b"\x80\x02]" + b"".join(b"q\x00]h\x00ah\x00a" for _ in range(10_000)) + b"."
    assert len(read(doubling)) == 2
    with pytest.raises(Refused, match="key"):
        read(b"\x80\x02}N" + b"\x85" * 1000 + b"K\x01s.")


def test_the_number_of_objects_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from jitney.export.megatron import pickled

    assert MAX_OBJECTS * 64 < 2 * 10**9
    monkeypatch.setattr(pickled, "MAX_OBJECTS", 1000)
    with pytest.raises(Refused, match="more than 1000 objects"):
        read(b"\x80\x02" + b"}" * 2000 + b".")


def test_memory_of_a_memo_bomb_is_bounded() -> None:
    """A memo index is a key, not a place: the largest one costs what the smallest does."""
    assert read(b"\x80\x02Nr\xff\xff\xff\xffj\xff\xff\xff\xff.") is None
