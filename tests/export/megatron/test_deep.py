"""Values nested a hundred thousand deep, wherever a file may hold one: compared, hashed and shown by nobody, they
neither crash the process nor pass. Such a tuple would overflow the interpreter's own stack when it is hashed."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path

import pytest

from jitney.export.open import open_source
from jitney.runtime.errors import ModelError

DEEP = b"N" + b"\x85" * 100_000
NAMESPACE = b"cargparse\nNamespace\n)R"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def mapping(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def record(path: str, **fields: bytes) -> bytes:
    module, _, name = path.rpartition(".")
    return f"c{module}\n{name}\n".encode() + b")\x81" + mapping(**fields) + b"b"


def zipped(pickle: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + pickle + b".")
        archive.writestr("a/data/0", b"\0" * 64)
    return buffer.getvalue()


def args(**fields: bytes) -> bytes:
    plain = {"num_layers": b"K\1", "hidden_size": b"K\4", "num_attention_heads": b"K\1", "seq_length": b"K\4"}
    return NAMESPACE + mapping(**(plain | fields)) + b"b"


def tensor(shape: bytes = b"(K\4K\4t", offset: bytes = b"K\0", key: bytes = b"X\1\0\0\x000") -> bytes:
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + key + text("cpu") + b"K\x10tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + shape + b"(K\4K\1t\x89}tR"


WORDS = "embedding.word_embeddings.weight"


def state(model: bytes, **more: bytes) -> bytes:
    return mapping(**({"args": args(), "model": model} | more))


def words(value: bytes) -> bytes:
    return b"}" + text(WORDS) + value + b"s"


FILES = {
    "an argument": state(words(tensor()), args=args(num_layers=DEEP)),
    "an argument that is refused": state(words(tensor()), args=args(num_experts=DEEP)),
    "the split": state(words(tensor()), args=args(tensor_model_parallel_size=DEEP)),
    "the vocabulary": state(words(tensor()), args=args(padded_vocab_size=DEEP)),
    "the arguments": state(words(tensor()), args=DEEP),
    "the model": state(DEEP),
    "a tensor": state(words(DEEP)),
    "a shape": state(words(tensor(shape=DEEP))),
    "an offset": state(words(tensor(offset=DEEP))),
    "a storage": state(words(tensor(key=DEEP))),
    "a key": state(b"}" + DEEP + b"K\1s"),
    "the optimizer, which is counted": state(DEEP, optimizer=DEEP, rng_state=b"]" + DEEP + b"a"),
    "a call": DEEP + b")R",
    "a name": b"\x80\x04" + DEEP + DEEP + b"\x93",
    "everything": DEEP,
}


@pytest.mark.parametrize("pickle", FILES.values(), ids=FILES)
def test_in_a_rank(pickle: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mp_rank_00" / "model_optim_rng.pt"
    path.parent.mkdir()
    path.write_bytes(zipped(pickle))
    with pytest.raises(ModelError) as caught:
        open_source(tmp_path)
    assert str(tmp_path) in str(caught.value) and len(str(caught.value)) < 500


def test_ranks_that_disagree_deeply(tmp_path: Path) -> None:
    for rank in ("mp_rank_00", "mp_rank_01"):
        (tmp_path / rank).mkdir()
        (tmp_path / rank / "model_optim_rng.pt").write_bytes(zipped(state(words(tensor()), iteration=DEEP)))
    with pytest.raises(ModelError, match="expected iteration"):
        open_source(tmp_path)


DCP = "torch.distributed.checkpoint"


def metadata(**changes: bytes) -> bytes:
    """One tensor of one chunk, with some of its fields replaced."""
    size = b"(K\4K\4t"
    fields = {"size": size, "offsets": b"(K\0K\0t", "sizes": size, "index": b"(K\0K\0t", "name": text(WORDS)}
    fields |= {"file": text("__0_0.distcp"), "start": b"K\0", "length": b"K\x10", "entry": b""}
    fields |= {"properties": b"N"} | changes
    chunk = record(f"{DCP}.metadata.ChunkStorageMetadata", offsets=fields["offsets"], sizes=fields["sizes"])
    entry = fields["entry"] or record(
        f"{DCP}.metadata.TensorStorageMetadata",
        properties=fields["properties"],
        size=fields["size"],
        chunks=b"]" + chunk + b"a",
    )
    index = record(f"{DCP}.metadata.MetadataIndex", fqn=fields["name"], offset=fields["index"])
    place = record(
        f"{DCP}.filesystem._StorageInfo",
        relative_path=fields["file"],
        offset=fields["start"],
        length=fields["length"],
    )
    table, places = b"}" + text(WORDS) + entry + b"s", b"}" + index + place + b"s"
    return (
        b"\x80\x02"
        + record(f"{DCP}.metadata.Metadata", state_dict_metadata=table, storage_data=places)
        + b"."
    )


@pytest.mark.parametrize(
    "field", ["size", "offsets", "sizes", "index", "name", "file", "start", "length", "entry", "properties"]
)
def test_in_the_table(field: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    (tmp_path / "__0_0.distcp").write_bytes(b"\0" * 64)
    (tmp_path / "common.pt").write_bytes(zipped(mapping(args=args())))
    (tmp_path / ".metadata").write_bytes(metadata(**{field: DEEP}))
    with pytest.raises(ModelError, match="[.]metadata: ") as caught:
        open_source(tmp_path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300, "..", ".", ""])
def test_file_names_that_no_system_takes(name: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    raw = name.encode("utf-8", "surrogatepass")
    (tmp_path / ".metadata").write_bytes(metadata(file=b"X" + struct.pack("<I", len(raw)) + raw))
    with pytest.raises(ModelError, match="[.]metadata: |No such file|directory"):
        open_source(tmp_path)
