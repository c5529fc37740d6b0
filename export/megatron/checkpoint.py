"""A Megatron checkpoint as a `Source`: which of its formats it is in, how large its vocabulary was before padding."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from ...runtime.backend import GenerationDefaults
from ...runtime.errors import ModelError
from ...runtime.text.definition import TokenizerDefinition, num_tokens
from ...runtime.text.tokenizer import ModelTokenizer
from ...runtime.weights.huggingface import directory_defaults, directory_tokenizer
from ..source import Format, Removed, Source
from .arguments import Arguments, megatron_config, zero_centred
from .dist_checkpoint import METADATA, read_dist_checkpoint
from .state import MegatronState
from .torch_checkpoint import read_torch_checkpoint
from .weights import MegatronWeights

LATEST = "latest_checkpointed_iteration.txt"
_EMBEDDING = "embedding.word_embeddings.weight"


def megatron_format(directory: Path) -> Format | None:
    """The format of a directory of one training step, or None where it is not Megatron's."""
    if (directory / METADATA).is_file():
        return "megatron-torch_dist"
    return "megatron-torch" if any(directory.glob("mp_rank_*")) else None


def latest(directory: Path) -> Path:
    """The step that a training run wrote last, where `directory` is the run's; else `directory` itself."""
    tracker = directory / LATEST
    if not tracker.is_file():
        return directory
    try:
        with tracker.open("rb") as file:
            step = file.read(100).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{tracker}: cannot be read: {error}") from error
    if not re.fullmatch(r"release|\d{1,9}", step):
        raise ModelError(f"{tracker}: expected a step's number or `release`, found {step[:80]!r}")
    found = directory / (step if step == "release" else f"iter_{int(step):07d}")
    if not found.is_dir():
        raise ModelError(f"{tracker}: it names step {step}, but {found.name} is not beside it")
    return found


def open_megatron(directory: Path, form: Format, name: str, tokenizer_directory: Path | None) -> Source:
    """The checkpoint of one training step. Raises `ModelError` naming the file, the argument or the tensor."""
    state = (read_torch_checkpoint if form == "megatron-torch" else read_dist_checkpoint)(directory)
    state, mtp = _without(state, "mtp.", "multi-token prediction")
    source = str(directory)
    embedding = state.tensors.get(_EMBEDDING)
    if embedding is None or len(embedding.shape) != 2 or not embedding.pieces:
        raise ModelError(f"{source}: the tensor {_EMBEDDING} is missing")
    text = _TextSide(tokenizer_directory)
    args = Arguments(source, state.arguments)
    padded = embedding.shape[0]
    config = megatron_config(args, _vocab_size(args, padded, text.num_tokens), embedding.dtype)
    weights = MegatronWeights(
        source, config, state.tensors, padded_vocab=padded, zero_centred=zero_centred(args)
    )
    cut = (padded - config.vocab_size) * (1 if config.tied_embeddings else 2)
    rows = Removed(
        "vocabulary padding", cut, cut * config.hidden_size * (4 if config.dtype == "float32" else 2)
    )
    return Source(
        name=name,
        path=directory,
        format=form,
        config=config,
        weights=weights,
        tokenizer=text.definition,
        generation=text.defaults,
        stripped=(*state.removed, *mtp, *((rows,) if cut else ())),
    )


class _TextSide:
    """The tokenizer that lies in a directory; none where there is none."""

    def __init__(self, directory: Path | None) -> None:
        self.definition: TokenizerDefinition | None = None
        self.num_tokens: int | None = None
        self.defaults = GenerationDefaults()
        if directory is not None:
            self.definition = directory_tokenizer(directory)
            self.num_tokens = num_tokens(self.definition)
            tokenizer = ModelTokenizer(self.definition, self.num_tokens)
            self.defaults = directory_defaults(directory, tokenizer)


def _vocab_size(args: Arguments, padded: int, num_tokens: int | None) -> int:
    """The tokenizer's size where one is at hand; else what the arguments say; else all rows there are."""
    declared = args.fields.get("padded_vocab_size")
    if declared is not None and declared != padded:
        raise args.error("padded_vocab_size", f"the {padded} rows of the embedding", declared)
    if num_tokens is not None:
        if num_tokens > padded:
            raise ModelError(
                f"{args.source}: the tokenizer has {num_tokens} tokens, the embedding {padded} rows; it is another's"
            )
        return num_tokens
    if args.fields.get("vocab_size") is None:
        return padded
    # Megatron's placeholder tokenizer adds its end token to the size that it was given.
    end = 1 if args.fields.get("tokenizer_type") == "NullTokenizer" else 0
    return min(args.size("vocab_size") + end, padded)


def _without(state: MegatronState, prefix: str, group: str) -> tuple[MegatronState, tuple[Removed, ...]]:
    gone = [tensor for name, tensor in state.tensors.items() if name.startswith(prefix)]
    if not gone:
        return state, ()
    kept = {name: tensor for name, tensor in state.tensors.items() if not name.startswith(prefix)}
    size = sum(piece.tensor.num_bytes for tensor in gone for piece in tensor.pieces)
    return msgspec.structs.replace(state, tensors=kept), (Removed(group, len(gone), size),)
