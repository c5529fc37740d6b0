"""The names that a checkpoint's pickles may hold, and what becomes of each. All that is not listed is refused; what is
listed is still never imported nor called."""

from __future__ import annotations

from typing import Any

from .records import INERT, Builder, Refused
from .stored_tensor import ELEMENT_BYTES, StoredTensor

STORAGE_TYPES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.storage.UntypedStorage": "uint8",
}


def _mapping(args: tuple[Any, ...]) -> dict[Any, Any]:
    if args not in ((), ([],)):
        raise Refused("a mapping that is built from arguments")
    return {}


def _size(args: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(args) != 1 or not isinstance(args[0], tuple):
        raise Refused("a torch.Size without its sizes")
    return args[0]


def _parameter(args: tuple[Any, ...]) -> StoredTensor:
    if not args or not isinstance(args[0], StoredTensor):
        raise Refused("a parameter without its tensor")
    return args[0]


def _bytes(args: tuple[Any, ...]) -> bytes:
    """How protocol 2 writes bytes: as a text, and the name of its encoding."""
    if (
        len(args) == 2
        and isinstance(args[0], str)
        and args[1] == "latin1"
        and max(args[0], default="") <= "\xff"
    ):
        return args[0].encode("latin-1")
    raise Refused("bytes that are no Latin-1 text")


PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_BUILDERS: dict[str, Builder] = {
    "collections.OrderedDict": _mapping,
    "torch.Size": _size,
    "_codecs.encode": _bytes,
    **dict.fromkeys(PARAMETERS, _parameter),
}
_PLAIN = {
    "builtins": "set frozenset complex slice range bytearray list dict tuple object int float bool str bytes",
    "argparse": "Namespace",
    "collections": "defaultdict Counter deque",
    "types": "SimpleNamespace",
    "pathlib": "Path PosixPath PurePath PurePosixPath WindowsPath PureWindowsPath",
    "datetime": "datetime date timedelta",
    "signal": "Signals",
    "io": "BytesIO",
    "copyreg": "_reconstructor",
    "numpy": "ndarray dtype float64 float32 int64 int32 bool_ uint32",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy.core.numeric": "_frombuffer",
    "torch": f"Tensor device strided contiguous_format {' '.join(ELEMENT_BYTES)} float8_e4m3fn float8_e5m2",
    "torch.nn.parameter": "Parameter",
    "torch.serialization": "_get_layout",
}
_SAME_AS = {
    "builtins": ["__builtin__"],
    "copyreg": ["copy_reg"],
    "io": ["_io"],
    "pathlib": ["pathlib._local"],
    "numpy.core.multiarray": ["numpy._core.multiarray"],
    "numpy.core.numeric": ["numpy._core.numeric"],
}
_INERT = {
    f"{spelling}.{name}"
    for module, names in _PLAIN.items()
    for spelling in [module, *_SAME_AS.get(module, ())]
    for name in names.split()
}
_INERT_BELOW = (
    "megatron.",
    "transformer_engine.",
    "numpy.dtypes.",
    "torch.distributed.checkpoint.",
    "torch.distributed._shard.",
)
"""Settings, enumerations and shard tables; read as records, never as what they are."""


def builder(path: str) -> Builder | None:
    """What makes an object of this name; `INERT` where it stays a record, None where it is refused."""
    if path in _BUILDERS:
        return _BUILDERS[path]
    inert = path in _INERT or path in STORAGE_TYPES or path.startswith(_INERT_BELOW)
    return INERT if inert else None
