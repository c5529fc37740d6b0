"""Every error that jitney raises on purpose.

JitneyError
├── RequestError              your request: refused before any work (HTTP 400)
│   ├── InvalidField          one field is wrong; carries its name
│   ├── ContextLengthExceeded the prompt and the answer do not fit the context
│   └── ModelNotFound         no model of that name is served (HTTP 404)
├── QueueFull                 too much is waiting; try again later (HTTP 429)
├── EngineError               our engine
│   ├── EngineClosed          not started, draining or closed (HTTP 503)
│   ├── EngineDied            the worker stopped; nothing more is served (HTTP 503)
│   └── CannotServe           the paged engine cannot hold this model here
├── GenerationFailed          a fault ended one accepted request (HTTP 500)
└── ModelError                a checkpoint, tokenizer or template cannot be used; names the file
"""

from __future__ import annotations

import reprlib


class JitneyError(Exception):
    """Base of every error in this tree."""


class RequestError(JitneyError):
    """The request is refused. `field` names the offending field, `code` is OpenAI's error code if one fits."""

    code = "invalid_value"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InvalidField(RequestError):
    """`field` should have been `expected` and was `got`."""

    def __init__(self, field: str, expected: str, got: object) -> None:
        super().__init__(f"{field}: expected {expected}, got {_shown(got)}", field=field)
        self.expected = expected
        self.got = got

    def renamed(self, field: str) -> InvalidField:
        """The same complaint about a field that the user knows by another name."""
        return InvalidField(field, self.expected, self.got)


class ContextLengthExceeded(RequestError):
    """The prompt, or the prompt and max_tokens together, exceed the model's context."""

    code = "context_length_exceeded"


class ModelNotFound(RequestError):
    """The named model is not served; the message lists those that are."""

    code = "model_not_found"


class QueueFull(JitneyError):
    """The queue is at its bound. `retry_after_s` estimates when a place comes free."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineError(JitneyError):
    """The engine, not the request, is at fault."""


class EngineClosed(EngineError):
    """The engine is not started, is draining, or is closed."""


class EngineDied(EngineError):
    """The worker stopped on an error; the cause is chained."""


class DeviceLost(EngineError):
    """The device answers no more, or its memory is not to be trusted: only a new process helps."""


class CannotServe(EngineError):
    """Continuous batching cannot serve this model here: no paged attention for it, or no room for a pool."""


class GenerationFailed(JitneyError):
    """An accepted request ended by a fault; other requests did not notice."""


class ModelError(JitneyError):
    """A model cannot be found, read or understood. The message names the file and what was expected."""


def _shown(value: object) -> str:
    brief = reprlib.Repr()
    brief.maxstring = brief.maxlong = brief.maxother = 80
    try:
        text = brief.repr(value)
    except ValueError:
        text = "a number of thousands of digits"
    return f"{text if len(text) <= 100 else text[:97] + '...'} ({type(value).__name__[:40]})"
