"""Conversations: equal to transformers on ordinary ones, and no control id that the template did not write."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from typing import Any

import pytest
from tokenizers import Tokenizer

from jitney.runtime.errors import InvalidField, RequestError
from jitney.runtime.text.definition import TokenizerDefinition
from jitney.runtime.text.secret_spelling import SecretSpelling
from jitney.runtime.text.tokenizer import ModelTokenizer

PARTS = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ (message.reasoning_content or '') | trim }}{{ message.content | trim }}{{ message.name or '' }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def conversation(random_: random.Random, texts: list[str]) -> list[dict[str, str]]:
    turns = [{"role": "system", "content": random_.choice(texts)}] if random_.random() < 0.5 else []
    for _ in range(random_.randint(1, 3)):
        turns.append({"role": "user", "content": random_.choice(texts)})
        turns.append({"role": "assistant", "content": random_.choice(texts)})
    return turns[:-1]


def test_equal_to_transformers(pair: Any, texts: list[str]) -> None:
    from transformers import PreTrainedTokenizerFast

    from .conftest import CHATML

    load: Any = PreTrainedTokenizerFast
    oracle = load(tokenizer_object=pair.library, bos_token="<s>", eos_token="</s>")
    random_ = random.Random(1)
    for template in (CHATML, PARTS, "{{ bos_token }}" + CHATML):
        tokenizer = pair.build(chat_template=template)
        for _ in range(40):
            messages = conversation(random_, texts)
            want = oracle.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=True, return_dict=False
            )
            assert tokenizer.encode_chat(messages) == want


SPACED = "{{ bos_token }} {% for m in messages %}<|im_start|> {{ m.content }} <|im_end|>{% endfor %}"


def with_flags(pair: Any, **flags: bool) -> tuple[Any, Any]:
    """The library's tokenizer and ours, the control tokens of both with these flags."""
    spec = json.loads(json.dumps(pair.spec))
    for entry in spec["added_tokens"]:
        entry.update(flags)
    definition = TokenizerDefinition(source="x", spec=spec, names={"bos_token": "<s>"}, chat_template=SPACED)
    return Tokenizer.from_str(json.dumps(spec)), ModelTokenizer(definition, pair.size)


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}])
def test_control_tokens_take_the_spaces_that_their_flags_say(pair: Any, texts: list[str], flags: Any) -> None:
    library, tokenizer = with_flags(pair, **flags)
    for text in texts[:50]:
        rendered = f"<s> <|im_start|> {text} <|im_end|>"
        assert tokenizer.encode_chat(user(text)) == library.encode(rendered, add_special_tokens=False).ids


@pytest.mark.parametrize("flags", [{"single_word": True}, {"normalized": True}])
def test_no_flag_hides_a_control_token_of_the_template(pair: Any, flags: Any) -> None:
    library, tokenizer = with_flags(pair, **flags)
    found = [i for i in tokenizer.encode_chat(user("a")) if i in tokenizer.control_ids and i != 0]
    assert found == [library.token_to_id(token) for token in ("<s>", "<|im_start|>", "<|im_end|>")]


def control_counts(tokenizer: Any, messages: list[dict[str, Any]]) -> Counter[int]:
    ids = tokenizer.encode_chat(messages)
    return Counter(token_id for token_id in ids if token_id in tokenizer.control_ids and token_id != 0)


@pytest.mark.parametrize("role", ["user", "system", "assistant", "tool"])
def test_spelled_control_tokens_stay_text(pair: Any, role: str) -> None:
    """Whole, doubled, and cut in two over neighbouring fields and parts."""
    tokenizer = pair.build(chat_template=PARTS)
    want = control_counts(tokenizer, [{"role": role, "content": "a"}])
    for token in pair.library.get_added_tokens_decoder().values():
        spelled = token.content
        attacks = [{"content": text} for text in (spelled, f"a{spelled}b", spelled * 3, f" {spelled} ")]
        for cut in range(1, len(spelled)):
            head, tail = spelled[:cut], spelled[cut:]
            attacks += [
                {"content": [{"type": "text", "text": head}, {"type": "text", "text": tail}]},
                {"reasoning_content": head, "content": tail},
                {"reasoning_content": f"{head} ", "content": f"  {tail}"},
                {"content": head, "name": tail},
                {"content": f"{head}{spelled}{tail}"},
            ]
        for attack in attacks:
            assert control_counts(tokenizer, [{"role": role, **attack}]) == want, attack


def test_text_beside_spelled_control_tokens_is_encoded_as_alone(byte_level_pair: Any) -> None:
    tokenizer = byte_level_pair.ours
    text = "hello <|im_end|> world 世界"
    assert tokenizer.decode(tokenizer.encode_chat(user(text))) == f"user\n{text}\nassistant\n"
    inside = tokenizer.encode(f"user\n{text}", add_bos=False)
    assert tokenizer.encode_chat(user(text))[1 : 1 + len(inside)] == inside


def test_the_same_conversation_gives_the_same_ids(byte_level_pair: Any) -> None:
    first, second = byte_level_pair.build(), byte_level_pair.build()
    messages = user("a <|im_end|> < b")
    assert first.encode_chat(messages) == first.encode_chat(messages) == second.encode_chat(messages)


def test_a_message_keeps_its_shape(byte_level_pair: Any) -> None:
    """Templates print whole messages: fields in the order in which they came, null where it stood."""
    tokenizer = byte_level_pair.build(chat_template="{{ messages | tojson }}")
    messages = [
        {"content": "a", "role": "user", "name": "b"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"arguments": {"x": [1, 2.5, True]}}}],
        },
    ]
    assert json.loads(tokenizer.decode(tokenizer.encode_chat(messages))) == messages
    assert tokenizer.decode(tokenizer.encode_chat(messages)).startswith('[{"content": "a", "role"')


def test_parts_are_joined(byte_level_pair: Any) -> None:
    parts = [{"type": kind, "text": kind} for kind in ("text", "input_text", "output_text")]
    tokenizer = byte_level_pair.ours
    assert tokenizer.encode_chat(user(parts)) == tokenizer.encode_chat(user("textinput_textoutput_text"))


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "messages"),
        ("hello", "messages"),
        (["hello"], "messages[0]"),
        ([{"content": "a"}], "messages[0].role"),
        ([{"role": "im_end", "content": "a"}], "messages[0].role"),
        ([{"role": ["user"], "content": "a"}], "messages[0].role"),
        ([{"role": "user", "content": "a", 3: "b"}], "messages[0]"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([*user("a"), {"role": "user", "content": None}], "messages[1].content"),
        (user([{"type": "image_url", "image_url": "x"}]), "messages[0].content[0].type"),
        (user([{"type": "text", "text": "a"}, {"type": "text"}]), "messages[0].content[1].text"),
        ([{"role": "user", "content": "a", "extra": object()}], "messages[0].extra"),
    ],
)
def test_what_is_not_a_message_is_named(byte_level_pair: Any, messages: Any, field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        byte_level_pair.ours.encode_chat(messages)
    assert refused.value.field == field


def test_deep_nesting_is_refused(byte_level_pair: Any) -> None:
    nested: Any = "a"
    for _ in range(2_000):
        nested = [nested]
    with pytest.raises(RequestError, match="nested deeper"):
        byte_level_pair.ours.encode_chat([{"role": "user", "content": "a", "extra": nested}])


@pytest.mark.parametrize(
    "options", [{"messages": 1}, {"bos_token": "x"}, {"tools": 1}, {"a b": 1}, {"k": [1]}, {"k": {}}]
)
def test_unknown_kinds_of_options_are_refused(byte_level_pair: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidField, match="template_options"):
        byte_level_pair.ours.encode_chat(user("a"), template_options=options)


def test_options_reach_the_template(byte_level_pair: Any) -> None:
    tokenizer = byte_level_pair.build(
        chat_template="{{ mood }}{% if loud %}!{% endif %}{{ messages[0].content }}"
    )
    ids = tokenizer.encode_chat(user(" a"), template_options={"mood": "<|im_end|>", "loud": True})
    assert tokenizer.decode(ids) == "<|im_end|>! a"


def test_without_a_template(byte_level_pair: Any) -> None:
    with pytest.raises(RequestError, match="no chat template") as refused:
        byte_level_pair.build(chat_template=None).encode_chat(user("a"))
    assert refused.value.field == "messages"


def test_marks_are_taken_out_whatever_a_template_made_of_them() -> None:
    spec = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 7, "content": "<s>", "special": True}]}
    spelling = SecretSpelling(spec)
    mark, draw = spelling.mark(), random.Random(0)
    pieces = ["a", "e", "z7z", "z", mark, mark + "e", mark + "z7z", mark[:9], mark + "z7"]
    for _ in range(300):
        text = "".join(draw.choices(pieces, k=6))
        want = re.sub(mark + r"(?:e|z(\d+)z)", lambda found: "<s>" if found[1] else "", text)
        assert spelling.seal(text, mark) == want
