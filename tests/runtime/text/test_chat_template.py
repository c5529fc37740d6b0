"""What templates on the hub expect, and what they must not do."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from jitney.runtime.errors import ModelError, RequestError
from jitney.runtime.text import chat_template
from jitney.runtime.text.chat_template import ChatTemplate


def render(text: str, **options: Any) -> str:
    template = ChatTemplate("file.jinja", text, {"bos_token": "<s>"}, now=lambda: datetime(2026, 11, 22))
    return template.render([{"role": "user", "content": 'a "<b>" é'}], options)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("{{ bos_token }}{{ add_generation_prompt }}", "<s>True"),
        ("{% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "a \\"<b>\\" é"}'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        ("{{ strftime_now('%d %b %Y') }}", "22 Nov 2026"),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% generation %}{{ messages[0].role }}{% endgeneration %}!", "user!"),
        (
            "{% set n = namespace(x=1) %}{% for _ in range(3) %}{% set n.x = n.x * 2 %}{% endfor %}{{ n.x }}",
            "8",
        ),
        ("{% if tools is none and tools is defined %}none{% endif %}{{ pad_token }}", "none"),
        ("{{ thinking | default('off') }}", "off"),
    ],
)
def test_renders(text: str, want: str) -> None:
    assert render(text) == want


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].content + none }}", "can only concatenate"),
        ("{{ missing.field }}", "undefined"),
        ("{{ 1 / 0 }}", "zero"),
    ],
)
def test_refuses(text: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as refused:
        render(text)
    assert refused.value.field == "messages"


def test_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_RENDERED_CHARS", 1000)
    with pytest.raises(RequestError, match="passes 1000 characters"):
        render("{% for _ in range(99999) %}{{ messages[0].content }}{% endfor %}")


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_RENDER_S", -1.0)
    with pytest.raises(RequestError, match="-1 s"):
        render("a")


@pytest.mark.parametrize("text", ["{% if %}", "{{ a", "{% include 'x' %}{% endfor %}", "{{ 'a' | nothing }}"])
def test_a_broken_template_names_its_file(text: str) -> None:
    with pytest.raises(ModelError, match="file.jinja"):
        render(text)
