"""Encoding: what the library gives, except that control tokens spelled in text are text."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import pytest

from jitney.runtime.errors import ModelError, RequestError
from jitney.runtime.text.definition import TokenizerDefinition
from jitney.runtime.text.tokenizer import ModelTokenizer

UNKNOWN = 0


def test_plain_text_is_encoded_as_the_library_does(pair: Any, texts: list[str]) -> None:
    for text in texts:
        assert pair.ours.encode(text) == pair.library.encode(text).ids
        assert (
            pair.ours.encode(text, add_bos=False) == pair.library.encode(text, add_special_tokens=False).ids
        )


def test_control_tokens_spelled_in_text_are_text(pair: Any) -> None:
    for spelling in pair.library.get_added_tokens_decoder().values():
        for text in (
            spelling.content,
            f"a{spelling.content}b",
            spelling.content * 2,
            f" {spelling.content} ",
        ):
            ids = pair.ours.encode(text, add_bos=False)
            assert not pair.ours.control_ids.intersection(ids) - {UNKNOWN}
            if pair.kind not in ("wordpiece", "pieces_alone"):
                assert pair.ours.decode(ids).strip() == text.strip()


def test_bos_follows_the_settings_over_the_post_processor(pair: Any) -> None:
    bos = pair.library.token_to_id("<s>")
    assert pair.build(add_bos=True).encode("a")[0] == bos
    assert bos not in pair.build(add_bos=False).encode("a")
    assert pair.build(add_bos=True).encode("a", add_bos=False) == pair.build(add_bos=False).encode("a")


def test_ids_past_the_vocabulary_show_nothing(pair: Any) -> None:
    tokenizer = pair.ours
    assert tokenizer.vocab_size == pair.size + 8
    for token_id in (pair.size, pair.size + 7, pair.size + 1000, -1):
        assert tokenizer.token_bytes(token_id) == b""
        assert tokenizer.decode([token_id]) == tokenizer.token_text(token_id) == ""


def test_named_tokens_are_control_tokens_whatever_their_flag(byte_level_pair: Any) -> None:
    spec = json.loads(json.dumps(byte_level_pair.spec))
    for entry in spec["added_tokens"]:
        entry["special"] = entry["content"] != "</s>"
    spec["added_tokens"] = [entry for entry in spec["added_tokens"] if entry["content"] != "<s>"]
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<absent>"}
    definition = TokenizerDefinition(
        source="x", spec=spec, names=names, chat_template="<s>{{ messages[0].content }}</s>"
    )
    tokenizer = ModelTokenizer(definition, byte_level_pair.size)
    assert tokenizer.control_ids == byte_level_pair.ours.control_ids
    ids = tokenizer.encode_chat([{"role": "user", "content": "<s>a</s>"}])
    assert (ids[0], ids[-1]) == (1, 2) and not {1, 2}.intersection(ids[1:-1])


def test_special_ids(pair: Any) -> None:
    assert pair.ours.special_id("bos_token") == pair.library.token_to_id("<s>")
    assert pair.ours.special_id("pad_token") is None


def test_token_bytes_join_to_the_text(byte_level_pair: Any, texts: list[str]) -> None:
    tokenizer = byte_level_pair.ours
    for text in texts:
        assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()
    assert tokenizer.token_text(tokenizer.encode("🜁")[0]) == "\ufffd"


def test_words_are_found_in_every_place(pair: Any) -> None:
    sequences = pair.ours.word_sequences("world")
    assert all(sequences) and len(set(sequences)) == len(sequences)
    for text in ("world", "hello world"):
        ids = pair.ours.encode(text)
        assert any(tuple(ids[-len(s) :]) == s for s in sequences)


def test_encoding_lets_other_threads_run(byte_level_pair: Any) -> None:
    """While one thread encodes long text another gets the interpreter lock without waiting for its end."""
    text, turns, started = "hello world " * 100_000, 0, threading.Event()

    def encode() -> None:
        started.set()
        byte_level_pair.ours.encode(text)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        thread = threading.Thread(target=encode)
        thread.start()
        started.wait()
        while thread.is_alive():
            turns += 1
            thread.join(0.001)
    finally:
        sys.setswitchinterval(interval)
    assert turns > 3


def test_text_that_no_tokenizer_takes_is_refused(pair: Any) -> None:
    with pytest.raises(RequestError) as refused:
        pair.ours.encode("\ud800")
    assert refused.value.field == "prompt"
    with pytest.raises(RequestError) as refused:
        pair.ours.encode_chat([{"role": "user", "content": "\ud800"}])
    assert refused.value.field == "messages"


@pytest.mark.parametrize(
    "spec", [{}, {"model": None}, {"model": {"type": "BPE"}}, {"added_tokens": [1], "model": {}}]
)
def test_a_broken_definition_names_its_file(spec: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="some/tokenizer.json"):
        ModelTokenizer(TokenizerDefinition(source="some/tokenizer.json", spec=spec), 8)
