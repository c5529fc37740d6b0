"""Streamed text equals whole text: every kind of tokenizer, every grouping, broken bytes included."""

from __future__ import annotations

import json
import random
from typing import Any

from tokenizers import Tokenizer, decoders, models

from jitney.runtime.text.definition import TokenizerDefinition
from jitney.runtime.text.tokenizer import ModelTokenizer

HELD_TOKENS = 4


def sequence(random_: random.Random, pair: Any, texts: list[str]) -> list[int]:
    """Ids of a text, or ids at random: broken characters, control tokens and ids past the vocabulary among them."""
    if random_.random() < 0.5:
        ids: list[int] = pair.ours.encode(random_.choice(texts))
        return ids
    return random_.choices(range(pair.size + 4), k=random_.randint(0, 24))


def grouped(random_: random.Random, ids: list[int], widest: int) -> list[list[int]]:
    groups, start = [], 0
    while start < len(ids):
        width = random_.randint(1, widest)
        groups.append(ids[start : start + width])
        start += width
    return groups


def streamed(pair: Any, groups: list[list[int]], **options: bool) -> str:
    detokenizer = pair.ours.detokenizer(**options)
    parts: list[str] = [detokenizer.push(group) for group in groups]
    return "".join([*parts, detokenizer.flush()])


def check(pair: Any, texts: list[str], rounds: int, groupings: int) -> None:
    random_ = random.Random(11)
    for turn in range(rounds):
        ids = sequence(random_, pair, texts)
        skip = turn % 2 == 0
        whole = pair.ours.decode(ids, skip_special_tokens=skip)
        for grouping in range(groupings):
            groups = grouped(random_, ids, 8 if grouping else 1)
            assert streamed(pair, groups, skip_special_tokens=skip) == whole, groups


def test_streamed_equals_whole(pair: Any, texts: list[str]) -> None:
    check(pair, texts, rounds=10_000, groupings=11)


def test_whole_equals_the_library(pair: Any, texts: list[str]) -> None:
    """SentencePiece's library decoder turns each byte of a run with one broken byte into U+FFFD; ours only the broken
    ones. Everything else is equal."""
    random_ = random.Random(5)
    compared = 0
    for _ in range(2_000):
        ids = sequence(random_, pair, texts)
        for skip in (True, False):
            theirs = pair.library.decode(ids, skip_special_tokens=skip)
            if pair.kind in ("byte_level", "tiny_bytes", "wordpiece") or "\ufffd" not in theirs:
                assert pair.ours.decode(ids, skip_special_tokens=skip) == theirs
                compared += 1
    assert compared > 1_000


def test_held_back_at_most_four_tokens(pair: Any, texts: list[str]) -> None:
    random_ = random.Random(9)
    for _ in range(500):
        ids = sequence(random_, pair, texts)
        detokenizer, shown = pair.ours.detokenizer(), ""
        for count, token_id in enumerate(ids, 1):
            shown += detokenizer.push([token_id])
            certain = pair.ours.decode(ids[: max(count - HELD_TOKENS, 0)]).rstrip("\ufffd")
            assert shown.startswith(certain)


def test_a_character_waits_for_its_last_byte(byte_level_pair: Any) -> None:
    tokenizer = byte_level_pair.ours
    ids = tokenizer.encode("🜁")
    detokenizer = tokenizer.detokenizer()
    assert len(ids) > 2
    assert [detokenizer.push([token_id]) for token_id in ids] == [""] * (len(ids) - 1) + ["🜁"]
    assert detokenizer.push(ids[:2]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_control_tokens_show_only_when_asked(pair: Any) -> None:
    ids = [pair.library.token_to_id(token) for token in ("<s>", "<|im_end|>", "</s>")]
    assert streamed(pair, [ids]) == ""
    shown = streamed(pair, [ids], skip_special_tokens=False)
    assert shown.replace(" ", "") == "<s><|im_end|></s>"


def test_spaces_between_control_tokens() -> None:
    """WordPiece's decoder puts a space before each token; without them two control tokens in a row stand together."""
    library = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "hi": 2}, unk_token="<s>"))
    library.decoder = decoders.WordPiece(cleanup=False)
    library.add_special_tokens(["<s>", "</s>"])
    tokenizer = ModelTokenizer(TokenizerDefinition(source="x", spec=json.loads(library.to_str())), 3)
    ids = [2, 0, 1, 2, 1]

    def shown(spaces: bool) -> str:
        detokenizer = tokenizer.detokenizer(skip_special_tokens=False, spaces_between_special_tokens=spaces)
        return detokenizer.push(ids) + detokenizer.flush()

    assert shown(True) == "hi <s> </s> hi </s>"
    assert shown(False) == "hi <s></s> hi </s>"
