"""R22: more than a thousand malformed or hostile files of every format. Each is refused naming the file; no code runs,
nothing is written, no process crashes, memory stays where it was."""

from __future__ import annotations

import encodings.cp437  # noqa: F401  # what zipfile imports for names that are not UTF-8
import io
import json
import random
import resource
import shutil
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_pickles import NAMES, calls
from tiny_checkpoints import tiny_model, write_checkpoint
from written_megatron import unpack

from jitney.export.open import open_source
from jitney.runtime.errors import ModelError

FORBIDDEN = {
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.remove", "os.rename", "os.mkdir"),
    *("subprocess.Popen", "pty.spawn", "shutil.rmtree", "socket.connect", "socket.bind", "ctypes.dlopen"),
    *("pickle.find_class", "marshal.loads", "marshal.load", "exec", "compile", "code.__new__", "import"),
}
"""Python's audit events of what must not happen while a file is refused. Modules are imported before."""


class Watch:
    """Audit hooks cannot be removed: one is added, and listens while it is told to."""

    def __init__(self) -> None:
        self.listening = False
        self.events: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.listening:
            return
        if event in ("compile", "exec") and "<template>" in repr(args):
            return  # the chat template of a file whose weights are refused later, in jinja's sandbox
        written = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if event in FORBIDDEN or written:
            self.events.append(f"{event} {args!r}"[:200])


WATCH = Watch()


def assert_refused(model: Path, named: str, files: Iterator[tuple[Path, bytes]], least: int) -> None:
    """Each file in turn is written in its place and the model opened and read."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = 0
    for path, data in files:
        path.write_bytes(data)
        WATCH.listening = True
        try:
            source = open_source(model)
            for name in source.weights.names():
                source.weights.get(name)
        except ModelError as error:
            assert named in str(error) and len(str(error)) < 1000
        else:
            pytest.fail(f"case {count} of {path.name} was accepted: {data[:200]!r}")
        finally:
            WATCH.listening = False
        count += 1
    assert count >= least and not WATCH.events
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def zipped(pickle: bytes, **options: Any) -> bytes:
    """A file as torch.save writes it, around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", b"\0" * 64)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def tensor(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], key: str = "0") -> bytes:
    """A pickle of one float32 tensor over the 64 bytes of `zipped`, under the keys that Megatron looks for."""

    def number(value: int) -> bytes:
        raw = value.to_bytes(9, "little", signed=True)
        return b"\x8a\x09" + raw

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + b"K\x10tQ"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset)
    rebuilt += numbers(shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    args = b"cargparse\nNamespace\n)R}b"
    model = b"}" + text("embedding.word_embeddings.weight") + rebuilt + b"s"
    return b"\x80\x02}" + text("args") + args + b"s" + text("model") + model + b"s."


TENSORS = {
    "past the end": (0, (17,), (1,)),
    "offset past the end": (16, (1,), (1,)),
    "huge offset": (2**47, (1,), (1,)),
    "negative offset": (-4, (1,), (1,)),
    "negative size": (0, (-1,), (1,)),
    "negative stride": (8, (4,), (-1,)),
    "repeated": (0, (2**30,), (0,)),
    "repeated by rows": (0, (2**20, 2**20), (0, 1)),
    "huge": (0, (2**40, 2**40), (2**40, 1)),
    "overflowing": (0, (2**47,) * 8, (1,) * 8),
    "overflowing strides": (0, (4, 4), (2**47, 2**47)),
    "too many axes": (0, (1,) * 40, (1,) * 40),
    "unequal": (0, (2, 2), (1,)),
    "a shape that fits, of another model": (0, (4, 4), (4, 1)),
}


def hostile_pickles() -> Iterator[bytes]:
    for at, name in enumerate(NAMES):
        ways = list(calls(name).values())
        yield from ways[at % 3 :: 3]


def hostile_zips(good: bytes) -> Iterator[bytes]:
    yield from map(zipped, hostile_pickles())
    for numbers in TENSORS.values():
        yield zipped(tensor(*numbers))
    for key in ("1", "../data.pkl", "", "0/..", "version"):
        yield zipped(tensor(0, (4,), (1,), key))
    yield zipped(tensor(0, (4,), (1,)), compression=zipfile.ZIP_DEFLATED)
    yield zipped(b"\x80\x02" + b"}" * 10**6 + b".", compression=zipfile.ZIP_DEFLATED)  # a zip bomb
    yield zipped(b"\x80\x02]N.")
    yield b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."  # the format before torch 1.6
    yield from (good[: len(good) * cut // 60] for cut in range(60))


def mutated(good: bytes, count: int, seed: int) -> Iterator[bytes]:
    """The file with a few bytes changed, most of them in its first part or in the zip's directory at its end."""
    chance = random.Random(seed)
    for turn in range(count):
        broken = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(good)) if turn % 3 else -1 - chance.randrange(min(len(good), 4000))
            broken[at if turn % 2 else at % min(len(good), 8000)] = chance.choice([0, 1, 46, 82, 127, 255])
        yield bytes(broken)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written")


def test_megatron_torch(written: Path) -> None:
    directory = unpack("torch-llama-tp1", written)
    open_source(directory)
    path = directory / "iter_0000010" / "mp_rank_00" / "model_optim_rng.pt"
    files = ((path, data) for data in hostile_zips(path.read_bytes()))
    assert_refused(directory, str(path.parent.parent), files, 400)


def test_megatron_torch_dist(written: Path) -> None:
    directory = unpack("dist-llama-tp1-stacked", written)
    open_source(directory)
    step = directory / "iter_0000010"
    for name in (".metadata", "common.pt", "metadata.json", "__0_0.distcp"):
        path = step / name
        good = path.read_bytes()
        cuts = [good[: len(good) * cut // 50] for cut in range(50)]
        hostile = [*hostile_pickles()][::2]
        hostile = [*map(zipped, hostile)] if name == "common.pt" else hostile
        cases = cuts if name == "__0_0.distcp" else [*cuts, *hostile]
        assert_refused(directory, str(step), ((path, case) for case in cases), 50)
        path.write_bytes(good)
    open_source(directory)
    chunks = sorted(step.glob("*.distcp"))
    for case in [b"", b"\0" * 100_000, *[*hostile_pickles()][::4]]:
        assert_refused(directory, str(step), ((chunk, case) for chunk in chunks), 1)


def broken_safetensors(good: bytes) -> Iterator[bytes]:
    (length,) = struct.unpack("<Q", good[:8])
    header, data = json.loads(good[8 : 8 + length]), good[8 + length :]

    def with_header(raw: bytes) -> bytes:
        return struct.pack("<Q", len(raw)) + raw + data

    yield from (good[: len(good) * cut // 60] for cut in range(60))
    yield from (
        struct.pack("<Q", size) + good[8:] for size in (0, 1, length - 1, len(good), 2**40, 2**64 - 1)
    )
    for raw in (b"[]", b"{", b"\xff" * 16, b"null", b'{"a":1}', b"[" * 10**5, b'{"a":' * 10**4, b"{}"):
        yield with_header(raw)
    names = [name for name in header if name != "__metadata__"]
    entries: list[Any] = [None, 1, [], "x", {}, {"dtype": "F32"}]
    for name in names:
        start, end = header[name]["data_offsets"]
        shape = header[name]["shape"]
        broken = [header[name] | {"dtype": dtype} for dtype in ("F64", "I8", "F8_E4M3", "evil", "", 7)]
        broken += [header[name] | {"shape": [*shape, 2]}, header[name] | {"shape": [2**47, 2**47, 2**47]}]
        broken += [
            header[name] | {"shape": [-1]},
            header[name] | {"shape": "x"},
            header[name] | {"shape": [1] * 99},
        ]
        offsets = ([end, start], [start, end + 1], [start, 2**60], [-4, end], [0.5, end], [start], "x")
        broken += [header[name] | {"data_offsets": pair} for pair in offsets]
        for entry in broken if name == names[0] else broken[::5]:
            yield with_header(json.dumps(header | {name: entry}).encode())
        yield with_header(json.dumps({other: header[other] for other in header if other != name}).encode())
        yield with_header(json.dumps(header | {name + ".more": header[name]}).encode())
    for entry in entries:
        yield with_header(json.dumps(header | {names[0]: entry}).encode())


@pytest.mark.parametrize("case", ["torch-llama-tp1", "dist-llama-tp1-stacked"])
def test_seeded_mutations(case: str, written: Path) -> None:
    """A mutated file is refused by name, or still opens; nothing else."""
    directory = unpack(case, written)
    refused = 0
    for at, path in enumerate(sorted((directory / "iter_0000010").rglob("*"))):
        if path.is_dir():
            continue
        good = path.read_bytes()
        for data in mutated(good, 60, at):
            path.write_bytes(data)
            WATCH.listening = True
            try:
                source = open_source(directory)
                for name in source.weights.names():
                    source.weights.get(name)
            except ModelError as error:
                assert str(directory) in str(error)
                refused += 1
            finally:
                WATCH.listening = False
        path.write_bytes(good)
    assert refused > 20 and not WATCH.events


def test_safetensors(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "tiny", "Llama")
    open_source(directory)
    path = directory / "model.safetensors"
    files = ((path, data) for data in broken_safetensors(path.read_bytes()))
    assert_refused(directory, str(directory), files, 200)
    shutil.rmtree(directory)


def broken_gguf(good: bytes, data_start: int) -> Iterator[bytes]:
    yield from (good[: data_start * cut // 200] for cut in range(200))
    yield from (good[: len(good) - cut] for cut in (1, 4, 100, 1000))
    for at, layout, values in (
        (0, "<I", (0, 0x46554747 + 1, 0x47475546)),  # magic
        (4, "<I", (0, 1, 4, 0x03000000)),  # version
        (8, "<Q", (0, 1, 2**20 + 1, 2**32, 2**64 - 1)),  # tensors
        (16, "<Q", (0, 1, 2**20 + 1, 2**32, 2**64 - 1)),  # keys
        (24, "<Q", (0, 2**31, 2**63, 2**64 - 1)),  # the first key's length
    ):
        for value in values:
            broken = bytearray(good)
            struct.pack_into(layout, broken, at, value)
            yield bytes(broken)
    for key, layout, values in (
        (b"llama.block_count", "<I", (0, 3, 1000, 2**31)),
        (b"llama.embedding_length", "<I", (0, 1, 33, 2**31)),
        (b"llama.attention.head_count", "<I", (0, 3, 2**31)),
        (b"llama.attention.head_count_kv", "<I", (0, 3, 2**31)),
        (b"llama.feed_forward_length", "<I", (0, 47, 2**31)),
        (b"llama.context_length", "<I", (0, 2**31)),
    ):
        for value in values:
            broken = bytearray(good)
            struct.pack_into(layout, broken, good.index(key) + len(key) + 4, value)
            yield bytes(broken)
    for name in (b"token_embd.weight", b"blk.1.ffn_up.weight", b"output_norm.weight"):
        at = good.rindex(name, 0, data_start) + len(name)
        for offset, layout, values in (
            (0, "<I", (0, 5, 2**31)),  # axes
            (4, "<Q", (0, 7, 2**40, 2**64 - 1)),  # the first size
        ):
            for value in values:
                broken = bytearray(good)
                struct.pack_into(layout, broken, at + offset, value)
                yield bytes(broken)


def test_gguf(tmp_path: Path) -> None:
    from gguf_writing import write_gguf

    path = write_gguf(tmp_path / "tiny.gguf", "llama", tiny_model("Llama"))
    source = open_source(path)
    good = path.read_bytes()
    start = min(each.start for each in source.weights._tensors.values())  # type: ignore[attr-defined]
    assert_refused(path, str(path), ((path, data) for data in broken_gguf(good, start)), 250)


def test_other_directories_are_named(tmp_path: Path) -> None:
    for name, told in {
        "pytorch_model.bin": "save them as safetensors",
        "consolidated.00.pth": "Meta's original weights",
        ".metadata": "torch's distributed checkpoint",
        "__0_0.distcp": "without their .metadata",
        "model.nemo": "NeMo archive",
        "a.gguf": "name one of them",
        "notes.txt": "found notes.txt",
    }.items():
        directory = tmp_path / name
        directory.mkdir()
        with pytest.raises(ModelError, match="nothing in it"):
            open_source(directory)
        (directory / name).write_bytes(b"")
        with pytest.raises(ModelError, match=told):
            open_source(directory)
    torch.save({}, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match="no such model"):
        open_source(tmp_path / "weights.pt")
