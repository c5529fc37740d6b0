"""Tokenizer, template and generation settings, written as a Hugging Face directory has them."""

from __future__ import annotations

from typing import Any

import msgspec

from ..runtime.weights.json_file import read_object
from .folder import Folder
from .source import Source

PASSED_ON = ("do_sample", "bos_token_id", "pad_token_id")
"""Of a `generation_config.json`: what transformers generates by, and the runtime does not ask for."""


def write_text_side(folder: Folder, source: Source) -> None:
    """Raises `ModelError` where the source has no tokenizer."""
    definition = source.definition()
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **definition.names,
    }
    if definition.add_bos is not None:
        settings["add_bos_token"] = definition.add_bos
    folder.write("tokenizer.json", msgspec.json.encode(definition.spec))
    folder.write_json("tokenizer_config.json", settings)
    folder.write_json("generation_config.json", _generation(source))
    if definition.chat_template is not None:
        folder.write("chat_template.jinja", definition.chat_template.encode())


def end_ids(source: Source) -> dict[str, list[int]]:
    """The ids that end an answer, as `config.json` and `generation_config.json` have them."""
    return {"eos_token_id": list(source.generation.end_token_ids)} if source.generation.end_token_ids else {}


def _generation(source: Source) -> dict[str, Any]:
    fields = msgspec.structs.asdict(source.generation)
    del fields["end_token_ids"]
    path = source.path / "generation_config.json"
    given = read_object(path) if path.is_file() else {}
    passed_on = {name: given[name] for name in PASSED_ON if isinstance(given.get(name), int)}
    return passed_on | end_ids(source) | {name: value for name, value in fields.items() if value is not None}
