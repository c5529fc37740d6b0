"""The `jitney` object of a request, and the query of a retrieval."""

from __future__ import annotations

from typing import Any

import pytest

from jitney.runtime.errors import RequestError
from jitney.streaming.protocols.create import HTTP_FIELDS, SOCKET_FIELDS, Create
from jitney.streaming.protocols.delivery import CANCEL, FINISH, Delivery, OnDisconnect, delivery
from jitney.streaming.protocols.retrieve import Retrieve, retrieve


def test_what_becomes_of_an_unread_answer() -> None:
    assert delivery(None) == Delivery() == delivery({})
    assert delivery(None).policy(FINISH) == FINISH
    assert delivery({"on_disconnect": "cancel"}).policy(FINISH) == CANCEL
    assert delivery({"on_disconnect": "detach"}).policy(FINISH) == OnDisconnect("detach", 30.0)
    wanted = delivery({"on_disconnect": "detach", "detach_ttl_s": 5})
    assert wanted.policy(CANCEL) == OnDisconnect("detach", 5.0)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"wibble": 1}, "wibble"),
        ({"on_disconnect": "stay"}, "on_disconnect"),
        ({"detach_ttl_s": 5}, "detach_ttl_s"),
        ({"on_disconnect": "finish", "detach_ttl_s": 5}, "detach_ttl_s"),
        ({"on_disconnect": "detach", "detach_ttl_s": 0}, "detach_ttl_s"),
        ({"on_disconnect": "detach", "detach_ttl_s": 3601}, "detach_ttl_s"),
        ({"credit": -1}, "credit"),
        ({"credit": True}, "credit"),
        ({"min_flush_tokens": 0}, "min_flush_tokens"),
        ({"max_flush_ms": 0}, "max_flush_ms"),
        ({"deadline_ms": -1}, "deadline_ms"),
        ({"deadline_ms": "soon"}, "deadline_ms"),
        ({"priority": 0.5}, "priority"),
    ],
)
def test_bad_ones_are_refused_by_name(given: Any, field: str) -> None:
    with pytest.raises(RequestError) as refused:
        delivery(given)
    assert refused.value.field == f"jitney.{field}"


def command(**fields: Any) -> Any:
    create = Create({"input": "hi", **fields}, "m", SOCKET_FIELDS)
    return create.command(create.messages)


def test_priority_and_deadline_in_either_place_but_not_in_both() -> None:
    assert command(jitney={"priority": -3}).priority == command(priority=-3).priority == -3
    assert command(jitney={"deadline_ms": 1500}).deadline_s == command(deadline_ms=1500).deadline_s == 1.5
    for field in ("priority", "deadline_ms"):
        with pytest.raises(RequestError, match="is set as well") as refused:
            command(**{field: 5, "jitney": {field: 5}})
        assert refused.value.field == f"jitney.{field}"


def test_reasoning_is_switched_off_in_the_template_unless_the_request_says_otherwise() -> None:
    off = {"reasoning": {"effort": "none"}}
    assert command(**off).template_options == {"enable_thinking": False}
    on = command(**off, chat_template_kwargs={"enable_thinking": True, "x": 1})
    assert on.template_options == {"enable_thinking": True, "x": 1}
    with pytest.raises(RequestError) as refused:
        command(reasoning={"effort": "high"})
    assert refused.value.field == "reasoning.effort"


@pytest.mark.parametrize("field", ["stream_id", "generate"])
def test_what_belongs_to_the_socket_is_refused_over_http(field: str) -> None:
    with pytest.raises(RequestError, match="WebSocket") as refused:
        Create({"input": "hi", field: False}, "m", HTTP_FIELDS)
    assert refused.value.field == field


def test_retrievals() -> None:
    assert retrieve([]) == Retrieve()
    assert retrieve([("stream", "true"), ("starting_after", "17")]) == Retrieve(True, 17)
    assert retrieve([("include_obfuscation", "false"), ("stream", "false")]) == Retrieve()
    assert retrieve([("include[]", "message.output_text.logprobs")]) == Retrieve()
    for name, value in (
        ("stream", "yes"),
        ("starting_after", "-1"),
        ("starting_after", "1"),
        ("starting_after", "٣"),
        ("starting_after", "9" * 20),
        ("include_obfuscation", "true"),
        ("include[]", "wibble"),
        ("wibble", ""),
    ):
        with pytest.raises(RequestError) as refused:
            retrieve([(name, value)])
        assert refused.value.field == name.removesuffix("[]")
