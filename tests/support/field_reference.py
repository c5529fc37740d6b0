"""docs/fields.md, written from the tables that the server decodes by.

python tests/support/field_reference.py > docs/fields.md
"""

from __future__ import annotations

import json
import sys

from jitney.streaming.protocols import (
    chat,
    completions,
    create,
    delivery,
    legacy_completions,
    megatron,
    messages,
    session,
    tokenizing,
    ui_session,
)
from jitney.streaming.protocols.fields import Harmless, Refused, Rule, Table

INTRODUCTION = (
    "# Fields\n\n"
    "What becomes of every field that a client may send. **Honoured**: it means what its documentation says. "
    "**Harmless**: accepted at the values that change nothing here, refused by name at others. "
    "**Refused**: a 400 that names it. Anything else is an unknown field, and refused too. "
    "`null` means that a field is absent.\n\n"
    "This page is generated from the tables that the server decodes by "
    "(`python tests/support/field_reference.py > docs/fields.md`); a test compares them.\n"
)

TABLES: dict[str, Table] = {
    "POST /v1/chat/completions": chat.FIELDS,
    "POST /v1/completions": completions.FIELDS,
    "POST /v1/responses": create.HTTP_FIELDS,
    "WS /v1/responses, `response.create`": create.SOCKET_FIELDS,
    "WS /v1/responses, `response.cancel`": session.CANCEL_FIELDS,
    "WS /v1/responses, `jitney:response.resume`": session.RESUME_FIELDS,
    "WS /v1/responses, `jitney:credit`": session.CREDIT_FIELDS,
    "The `jitney` object of a request": delivery.FIELDS,
    "The `reasoning` object of a response": create.REASONING,
    "A message of a chat completion": messages.MESSAGE,
    "A message item of a response's `input`": messages.ITEM,
    "WS /v1/chat/ws, `send`": ui_session.SEND,
    "WS /v1/chat/ws, `resume`": ui_session.RESUME,
    "WS /v1/chat/ws, the `body` of a `send`": ui_session.BODY,
    "POST /v1/tokenize": tokenizing.TOKENIZE,
    "POST /v1/detokenize": tokenizing.DETOKENIZE,
    "PUT /api (Megatron)": megatron.FIELDS,
    "POST /completions (Megatron)": legacy_completions.FIELDS,
}


def reference() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *(section(title, table) for title, table in TABLES.items())])


def section(title: str, table: Table) -> str:
    rows = [f"| `{name}` | {told(rule)} |" for name, rule in sorted(table.items())]
    return "\n".join([f"## {title}\n", "| field | |", "| --- | --- |", *rows, ""])


def told(rule: Rule) -> str:
    if isinstance(rule, Harmless):
        if rule.values is None:
            return "harmless at any value"
        return "harmless at " + " or ".join(f"`{json.dumps(value)}`" for value in rule.values)
    if isinstance(rule, Refused):
        return "refused" + (f": {rule.instead}" if rule.instead else "")
    return "honoured"


if __name__ == "__main__":
    sys.stdout.write(reference())
