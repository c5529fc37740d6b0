"""A Hugging Face directory as a `Checkpoint`. Only JSON, safetensors and templates are read; no code of the model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..backend import GenerationDefaults
from ..errors import ModelError
from ..text.definition import TokenizerDefinition
from ..text.tokenizer import ModelTokenizer
from .checkpoint import Checkpoint
from .generation import generation_defaults
from .hf_config import hf_config
from .json_file import read_object
from .quantized_weights import QuantizedWeights
from .random_weights import RandomWeights
from .safetensors_weights import FLOAT_BYTES, STORED_BYTES, SafetensorsWeights
from .source import Weights

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


def open_directory(directory: Path, name: str, *, random_weights: bool = False) -> Checkpoint:
    """With `random_weights` no safetensors file is opened. Raises `ModelError` naming the file and what is wrong."""
    fields = read_object(directory / "config.json")
    source = str(directory / "config.json")
    weights: Weights
    if random_weights:
        config = hf_config(source, fields, stored_dtype="bfloat16")
        weights = RandomWeights(source, config)
    else:
        narrow = "quantization_config" in fields
        stored = SafetensorsWeights(directory, STORED_BYTES if narrow else FLOAT_BYTES)
        weights = QuantizedWeights(stored) if narrow else stored
        embedding = "model.embed_tokens.weight"
        dtype = stored.known(embedding).dtype if embedding in stored.names() else "float32"
        config = hf_config(source, fields, stored_dtype=dtype)
    checkpoint = Checkpoint(
        name,
        config,
        weights,
        directory_tokenizer(directory),
        lambda tokenizer: directory_defaults(directory, tokenizer, fields.get("eos_token_id")),
    )
    if isinstance(weights, QuantizedWeights):
        checkpoint.kv_scales = weights.kv_scales(config.num_layers)
    return checkpoint


def directory_defaults(directory: Path, tokenizer: ModelTokenizer, *more_end_ids: Any) -> GenerationDefaults:
    """From `generation_config.json`, where there is one. Raises `ModelError` naming the file and the field."""
    path = directory / "generation_config.json"
    settings = read_object(path) if path.is_file() else {}
    return generation_defaults(str(path), settings, *more_end_ids, tokenizer.special_id("eos_token"))


def directory_tokenizer(directory: Path) -> TokenizerDefinition:
    """Raises `ModelError` naming the file."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{path}: missing; a tokenizer in another form is not served")
    settings_path = directory / "tokenizer_config.json"
    settings = read_object(settings_path) if settings_path.is_file() else {}
    named = {key: _spelling(settings.get(key)) for key in _NAMED}
    add_bos = settings.get("add_bos_token")
    return TokenizerDefinition(
        source=str(path),
        spec=read_object(path),
        names={key: spelling for key, spelling in named.items() if spelling is not None},
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        chat_template=_template(directory, settings),
    )


def _spelling(value: Any) -> str | None:
    """A token is named by its spelling, or by an object that holds it."""
    spelled = value.get("content") if isinstance(value, dict) else value
    return spelled if isinstance(spelled, str) else None


def _template(directory: Path, settings: dict[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: {error}") from error
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
