"""Each field of each table: honoured ones change the command, harmless ones do not, the rest is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import field_reference
import msgspec
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params, responses_client_event_param

from jitney.runtime.errors import RequestError
from jitney.streaming.protocols import chat, completions, create
from jitney.streaming.protocols.fields import Harmless, Honoured, Refused, parse

Body = dict[str, Any]


def read_chat(body: Body) -> Any:
    exchange = chat.ChatCompletion(msgspec.json.encode(body), "m")
    return exchange.generates, exchange.is_stream, exchange._include_usage, exchange.delivery


def read_completion(body: Body) -> Any:
    exchange = completions.Completion(msgspec.json.encode(body), "m")
    echoed = exchange._echo, exchange.delivery
    return exchange.generates, exchange.is_stream, exchange._include_usage, *echoed


def read_create(body: Body, table: Any = create.SOCKET_FIELDS) -> Any:
    made = create.Create(body, "m", table)
    request = made.request
    flow = request.stream, request.delivery()
    return made.command(made.messages), made.facts(0), flow


def read_http_create(body: Body) -> Any:
    return read_create(body, create.HTTP_FIELDS)


ROUTES: dict[str, Any] = {
    "chat": (chat.FIELDS, read_chat, {"messages": [{"role": "user", "content": "hi"}]}),
    "completions": (completions.FIELDS, read_completion, {"prompt": "hi"}),
    "responses socket": (create.SOCKET_FIELDS, read_create, {"input": "hi"}),
    "responses": (create.HTTP_FIELDS, read_http_create, {"input": "hi"}),
}

VALUES: Body = {
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.1,
    "seed": 7,
    "presence_penalty": 1,
    "frequency_penalty": -1,
    "repetition_penalty": 1.5,
    "logit_bias": {"5": -100},
    "allowed_token_ids": [1, 2],
    "bad_words": ["no"],
    "bad_token_ids": [3],
    "stop": ["\n"],
    "stop_token_ids": [4],
    "include_stop_str_in_output": True,
    "min_tokens": 2,
    "ignore_eos": True,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "max_tokens": 9,
    "max_completion_tokens": 9,
    "max_output_tokens": 9,
    "n": 2,
    "priority": -1,
    "deadline_ms": 1500,
    "cache_salt": "s",
    "user": "u",
    "messages": [{"role": "user", "content": "ho"}],
    "prompt": [1, 2],
    "input": [{"role": "user", "content": "ho"}],
    "instructions": "be brief",
    "stream": True,
    "chat_template_kwargs": {"enable_thinking": False},
    "previous_response_id": "resp_1",
    "metadata": {"k": "v"},
    "include": ["message.output_text.logprobs"],
    "echo": True,
    "jitney": {"on_disconnect": "detach", "detach_ttl_s": 5},
    "reasoning": {"effort": "none"},
    "reasoning_effort": "none",
    "generate": False,
    "background": True,
}
"""For each honoured field a value that changes the command."""

TOGETHER: dict[tuple[str, str], Body] = {
    ("chat", "logprobs"): {"logprobs": True},
    ("chat", "top_logprobs"): {"logprobs": True, "top_logprobs": 3},
    ("completions", "logprobs"): {"logprobs": 3},
    ("responses", "top_logprobs"): {"top_logprobs": 3},
    ("responses socket", "top_logprobs"): {"top_logprobs": 3},
    ("chat", "logprob_token_ids"): {"logprobs": True, "logprob_token_ids": [3]},
    ("completions", "logprob_token_ids"): {"logprobs": 1, "logprob_token_ids": [3]},
    ("responses", "logprob_token_ids"): {"top_logprobs": 1, "logprob_token_ids": [3]},
    ("responses socket", "logprob_token_ids"): {"top_logprobs": 1, "logprob_token_ids": [3]},
    ("chat", "stream_options"): {"stream": True, "stream_options": {"include_usage": True}},
    ("completions", "stream_options"): {"stream": True, "stream_options": {"include_usage": True}},
}
SILENT = {
    "model",
    "type",
    "stream_id",
    ("responses", "stream_options"),
    ("responses socket", "stream_options"),
}
"""Honoured without changing the command: tested by name below or in the session's tests."""

ALL = [(route, name) for route, (table, _, _) in ROUTES.items() for name in table]


def rules(kind: type) -> list[tuple[str, str]]:
    return [(route, name) for route, name in ALL if isinstance(ROUTES[route][0][name], kind)]


@pytest.mark.parametrize(("route", "name"), rules(Honoured))
def test_honoured_fields_change_the_command(route: str, name: str) -> None:
    _, read, base = ROUTES[route]
    if name in SILENT or (route, name) in SILENT:
        return
    given = TOGETHER.get((route, name)) or {name: VALUES[name]}
    without = {key: value for key, value in given.items() if key != name}
    assert read({**base, **given}) != read({**base, **without})


@pytest.mark.parametrize(("route", "name"), rules(Honoured))
@pytest.mark.parametrize("wrong", [{"a": []}, [[[]]], 1e300, "\x00" * 5])
def test_honoured_fields_of_a_wrong_type_are_refused_by_name(route: str, name: str, wrong: Any) -> None:
    _, read, base = ROUTES[route]
    if name in ("type", "stream_id") or (name, type(wrong)) in LEGAL:
        return
    with pytest.raises(RequestError) as refused:
        read({**base, **TOGETHER.get((route, name), {}), name: wrong})
    assert (refused.value.field or "").startswith(name)


LEGAL = {
    *((name, str) for name in ("user", "cache_salt", "stop", "prompt", "input", "instructions")),
    *((name, dict) for name in ("chat_template_kwargs",)),
    ("previous_response_id", str),
    ("deadline_ms", float),
}


@pytest.mark.parametrize(("route", "name"), rules(Harmless))
def test_harmless_fields_change_nothing(route: str, name: str) -> None:
    table, read, base = ROUTES[route]
    plain = read(base)
    for value in table[name].values or ("anything", 1, True, {"a": [1]}):
        assert read({**base, name: value}) == plain


@pytest.mark.parametrize(("route", "name"), rules(Harmless) + rules(Refused))
def test_other_values_are_refused_by_name(route: str, name: str) -> None:
    table, read, base = ROUTES[route]
    if isinstance(table[name], Harmless) and table[name].values is None:
        return
    with pytest.raises(RequestError, match=name) as refused:
        read({**base, name: {"unheard": ["of"]}})
    assert refused.value.field == name


@pytest.mark.parametrize("route", ROUTES)
def test_null_is_absent_and_an_unknown_field_is_refused(route: str) -> None:
    table, read, base = ROUTES[route]
    assert read({**base, **{name: None for name in table if name not in base}}) == read(base)
    with pytest.raises(RequestError, match="wibble: unknown field") as refused:
        read({**base, "wibble": None})
    assert refused.value.field == "wibble"


@pytest.mark.parametrize("route", ROUTES)
def test_required_fields(route: str) -> None:
    _, read, base = ROUTES[route]
    with pytest.raises(RequestError, match=next(iter(base))):
        read({})


@pytest.mark.parametrize(
    ("route", "params"),
    [
        ("chat", chat_create_params.CompletionCreateParamsBase),
        ("completions", completion_create_params.CompletionCreateParamsBase),
        ("responses", response_create_params.ResponseCreateParamsBase),
        ("responses socket", responses_client_event_param.ResponseCreate),
    ],
)
def test_the_tables_know_every_field_that_the_sdk_sends(route: str, params: Any) -> None:
    assert set(params.__annotations__) <= set(ROUTES[route][0])


def test_one_is_not_true() -> None:
    with pytest.raises(RequestError) as refused:
        read_completion({"prompt": "hi", "best_of": True})
    assert refused.value.field == "best_of"


@pytest.mark.parametrize("options", [{"include_obfuscation": True}, {"wibble": 1}, {"include_usage": 3}])
def test_stream_options_are_a_table_too(options: Body) -> None:
    for route in ("chat", "completions"):
        with pytest.raises(RequestError) as refused:
            ROUTES[route][1]({**ROUTES[route][2], "stream": True, "stream_options": options})
        assert refused.value.field == f"stream_options.{next(iter(options))}"


@pytest.mark.parametrize("route", ["chat", "completions"])
def test_stream_options_without_a_stream_are_refused(route: str) -> None:
    _, read, base = ROUTES[route]
    with pytest.raises(RequestError, match="stream_options: expected stream to be true"):
        read({**base, "stream_options": {"include_usage": True}})


def test_two_names_of_one_field_are_refused_and_errors_use_the_clients_name() -> None:
    base = ROUTES["chat"][2]
    with pytest.raises(RequestError, match="send one of the two"):
        read_chat({**base, "max_tokens": 3, "max_completion_tokens": 3})
    with pytest.raises(RequestError, match="^max_completion_tokens: expected an integer") as refused:
        read_chat({**base, "max_completion_tokens": 0})
    assert refused.value.field == "max_completion_tokens"


@pytest.mark.parametrize("ms", [0, -1, 1e999])
def test_deadlines_are_positive(ms: float) -> None:
    with pytest.raises(RequestError, match="deadline_ms"):
        read_create({"input": "hi", "deadline_ms": ms})


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("hi", "messages[0]"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": "tool", "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": "x", "name": "bob"}, "messages[0].name"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[0].tool_calls"),
    ],
)
def test_messages_are_refused_by_index_and_field(message: Any, field: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_chat({"messages": [message]})
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"type": "function_call_output", "output": "x"}, "input[0].type"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "input[0].content[0].type"),
        ({"role": "user", "content": "x", "wibble": 1}, "input[0].wibble"),
    ],
)
def test_input_items_are_refused_by_index_and_field(item: Any, field: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_create({"input": [item]})
    assert refused.value.field == field


def test_our_own_output_items_come_back_as_input() -> None:
    part = {"type": "output_text", "text": "answer", "annotations": [], "logprobs": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    generate = read_create(
        {"input": [item, {"role": "developer", "content": "x"}], "instructions": "be brief"}
    )[0]
    assert generate.prompt == [
        {"role": "system", "content": "be brief"},
        {"role": "assistant", "content": "answer"},
        {"role": "system", "content": "x"},
    ]


@pytest.mark.parametrize(
    "prompt", ["", [], [[]], [""], ["a", 3], [1, "a"], [-1], [True], [2**31], ["a"] * 65, 7]
)
def test_prompts(prompt: Any) -> None:
    """The shapes that are neither text, nor token ids, nor a list of these; what is empty is the engine's to refuse."""
    if prompt in ("", [[]], [""]):
        assert len(read_completion({"prompt": prompt})[0]) == 1
        return
    with pytest.raises(RequestError) as refused:
        read_completion({"prompt": prompt})
    assert refused.value.field == "prompt"


def test_the_page_about_fields_is_written_from_the_tables() -> None:
    page = Path(__file__).parents[3] / "docs" / "fields.md"
    expected = field_reference.reference()
    assert page.read_text() == expected, "python tests/support/field_reference.py > docs/fields.md"


def test_half_a_surrogate_pair_is_called_so() -> None:
    for body in (b'{"prompt": "\\ud83d"}', b'{"prompt": "\\ud83d then more"}'):
        with pytest.raises(
            RequestError, match="body: expected text that UTF-8 can hold, got half a surrogate pair"
        ):
            parse(body)
    with pytest.raises(RequestError, match="body: expected valid JSON"):
        parse(b'{"prompt": "')
