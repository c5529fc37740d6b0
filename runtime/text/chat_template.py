"""A model's chat template: jinja2 in the immutable sandbox, with what templates on the hub expect."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import ModelError, RequestError

MAX_RENDERED_CHARS = 16 * 2**20
MAX_RENDER_S = 10.0


REASONING_MARKERS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
)
"""Of the families whose templates spell them out."""


class ChatTemplate:
    """One compiled template. Raises `ModelError` naming `source` where it does not compile."""

    def __init__(
        self, source: str, text: str, names: dict[str, str], *, now: Callable[[], datetime] = datetime.now
    ) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        self._names = names
        self.reasoning_markers = next(
            (pair for pair in REASONING_MARKERS if pair[0] in text and pair[1] in text), None
        )
        try:
            self._template = environment.from_string(text)
        except (TemplateError, RecursionError) as error:
            raise ModelError(f"{source}: the chat template does not compile: {error}") from error

    def render(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
        """The conversation up to where the answer begins. Raises `RequestError` where the template refuses it, or
        passes its bounds of size and time."""
        known = {"tools": None, "documents": None, **self._names, **options}
        parts: list[str] = []
        size, deadline = 0, time.monotonic() + MAX_RENDER_S
        try:
            for part in self._template.generate(known, messages=messages, add_generation_prompt=True):
                parts.append(part)
                size += len(part)
                if size > MAX_RENDERED_CHARS or time.monotonic() > deadline:
                    raise TemplateError(f"it passes {MAX_RENDERED_CHARS} characters or {MAX_RENDER_S:g} s")
        except Exception as error:  # a template is a program: what it raises has no bound
            reason = str(error) or type(error).__name__
            raise RequestError(
                f"messages: the model's chat template refuses them: {reason}", field="messages"
            ) from error
        return "".join(parts)


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks answers for training; here its content stands alone."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(
            line
        )


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
