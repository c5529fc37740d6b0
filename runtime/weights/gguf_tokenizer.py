"""The tokenizer inside a GGUF file, rebuilt as the `tokenizer.json` that it was made from."""

from __future__ import annotations

from typing import Any

from ..errors import ModelError
from ..text.definition import TokenizerDefinition
from .gguf_file import GgufFile

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split_by(regex: str) -> list[dict[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return [split, _byte_level(False)]


_PRE_TOKENIZERS = {
    "gpt-2": [_byte_level(True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _byte_level(True)],
    "llama-bpe": _split_by(_LLAMA3),
    "qwen2": _split_by(_QWEN2),
}
_SAME_AS = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
}


def gguf_tokenizer(file: GgufFile) -> TokenizerDefinition:
    """Raises `ModelError` naming the file and the key."""
    reader = _Reader(file)
    kind = reader.key("model", str)
    if kind not in ("gpt2", "llama"):
        raise ModelError(f"{file.path}: tokenizer.ggml.model {kind!r} is not served; served: 'gpt2', 'llama'")
    spec = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": reader.added_tokens()}
    spec |= _byte_pair_spec(reader) if kind == "gpt2" else _sentencepiece_spec(reader)
    template = file.metadata.get("tokenizer.chat_template")
    return TokenizerDefinition(
        source=str(file.path),
        spec=spec,
        names=reader.names(),
        add_bos=reader.key("add_bos_token", bool, kind == "llama" or reader.pre_tokenizer() == "llama-bpe"),
        chat_template=template if isinstance(template, str) else None,
    )


class _Reader:
    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.tokens: list[str] = self.listed("tokens", str)
        self.kinds: list[int] = self.listed("token_type", int, [1] * len(self.tokens))
        if len(set(self.tokens)) != len(self.tokens) or len(self.kinds) != len(self.tokens):
            raise ModelError(
                f"{file.path}: tokenizer.ggml.tokens: expected distinct tokens, one type for each"
            )

    def key(self, key: str, kind: type, *default: Any) -> Any:
        value = self.file.metadata.get(f"tokenizer.ggml.{key}", *default)
        if not isinstance(value, kind):
            found = type(value).__name__
            raise ModelError(
                f"{self.file.path}: tokenizer.ggml.{key}: expected {kind.__name__}, found {found}"
            )
        return value

    def listed(self, key: str, kind: type, *default: Any) -> Any:
        values = self.key(key, list, *default)
        if any(not isinstance(value, kind) for value in values):
            raise ModelError(f"{self.file.path}: tokenizer.ggml.{key}: expected a list of {kind.__name__}")
        return values

    def pre_tokenizer(self) -> str:
        name: str = self.key("pre", str, "default")
        return _SAME_AS.get(name, name)

    def names(self) -> dict[str, str]:
        keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        found = {name: self.file.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
        return {
            name: self.tokens[index]
            for name, index in found.items()
            if isinstance(index, int) and 0 <= index < len(self.tokens)
        }

    def added_tokens(self) -> list[dict[str, Any]]:
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return [
            {"id": index, "content": token, **flags, "special": kind != _USER_DEFINED}
            for index, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]

    def vocab(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}


def _byte_pair_spec(reader: _Reader) -> dict[str, Any]:
    pre = reader.pre_tokenizer()
    if pre not in _PRE_TOKENIZERS:
        served = ", ".join(sorted({*_PRE_TOKENIZERS, *_SAME_AS}))
        raise ModelError(f"{reader.file.path}: tokenizer.ggml.pre {pre!r} is not served; served: {served}")
    merges = [merge.split(" ") for merge in reader.listed("merges", str)]
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]},
        "post_processor": None,
        "decoder": _byte_level(True),
        "model": _bpe(reader, merges, ignore_merges=pre == "llama-bpe"),
    }


def _sentencepiece_spec(reader: _Reader) -> dict[str, Any]:
    space = reader.key("add_space_prefix", bool, True)
    prepend: list[dict[str, Any]] = [{"type": "Prepend", "prepend": "▁"}] if space else []
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    restore = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip: list[dict[str, Any]] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if space else []
    decoders = [restore, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(reader, _merges_by_score(reader), byte_fallback=True, fuse_unk=True),
    }


def _merges_by_score(reader: _Reader) -> list[list[str]]:
    """SentencePiece joins the pair whose union scores highest: every split of every token, by score, is a merge."""
    scores = reader.listed("scores", float)
    if len(scores) != len(reader.tokens):
        raise ModelError(f"{reader.file.path}: tokenizer.ggml.scores: expected one for each token")
    vocab = reader.vocab()
    ranked: list[tuple[float, int, int, list[str]]] = []
    for index, (token, kind) in enumerate(zip(reader.tokens, reader.kinds, strict=True)):
        if kind == 1 and len(token) <= 256:
            pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
            ranked += [
                (-scores[index], index, n, [a, b])
                for n, (a, b) in enumerate(pairs)
                if a in vocab and b in vocab
            ]
    return [pair for *_, pair in sorted(ranked)]


def _bpe(reader: _Reader, merges: list[list[str]], **options: bool) -> dict[str, Any]:
    flags = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False} | options
    unknown = reader.names().get("unk_token") if options.get("byte_fallback") else None
    affixes = {
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
    }
    return {"type": "BPE", **affixes, **flags, "vocab": reader.vocab(), "merges": merges}


def gguf_end_ids(file: GgufFile) -> list[int]:
    """The ids that end an answer."""
    found = (file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom"))
    return list(dict.fromkeys(index for index in found if isinstance(index, int)))
