"""Settings and tokenizers whose values are other than they should be: refused by name, or opened."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from jitney.runtime.errors import JitneyError, ModelError
from jitney.runtime.weights.huggingface import open_directory

JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    2**40,
    1.5,
    "",
    "x",
    "\u0000",
    [],
    [1],
    ["x"],
    {},
    {"type": "x"},
    [[]],
]

GENERATION = {
    "eos_token_id": [2, 3],
    "temperature": 0.6,
    "top_p": 0.9,
    "top_k": 20,
    "repetition_penalty": 1.1,
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    for key, item in list(inside)[:40]:
        found += places(item, (*path, key))
    return found


def mutated(random_: random.Random, content: Any) -> Any:
    content = json.loads(json.dumps(content))
    for _ in range(random_.randint(1, 2)):
        *parents, last = random_.choice(places(content))
        holder = content
        for key in parents:
            holder = holder[key]
        if isinstance(holder, dict) and random_.random() < 0.3:
            del holder[last]
        else:
            holder[last] = copy.deepcopy(random_.choice(JUNK))
    return content


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_seeded_mutations(name: str, family: str, tmp_path: Path, directories: dict[str, Path]) -> None:
    directory = tmp_path / "model"
    shutil.copytree(directories[family], directory)
    (directory / "generation_config.json").write_text(json.dumps(GENERATION))
    good, random_, refused = json.loads((directory / name).read_text()), random.Random(name), 0
    for _ in range(150):
        (directory / name).write_text(json.dumps(mutated(random_, good)))
        try:
            tokenizer = open_directory(directory, "x").tokenizer
        except ModelError as error:
            assert str(directory) in str(error)
            refused += 1
            continue
        try:
            tokenizer.decode(tokenizer.encode("a <s> b"), skip_special_tokens=False)
            tokenizer.encode_chat([{"role": "user", "content": "</s>"}])
        except JitneyError:
            refused += 1
    assert refused > 10
