"""What a reader of a response receives, and what every protocol encodes."""

from __future__ import annotations

from typing import Literal

import msgspec

from .batch import TokenLogprobs

FinishReason = Literal["stop_token", "stop_string", "length", "cancelled", "deadline", "error"]
"""Why a choice ended: an end id was sampled, a stop string was found, max_tokens or the context was reached, the
client cancelled, the deadline passed, or a fault ended it."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request, over all its choices. `cached_tokens` of the prompt came from the prefix cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Times(msgspec.Struct, frozen=True):
    """Seconds since the request was accepted; None where it did not get so far."""

    queued_s: float | None = None
    first_token_s: float | None = None
    total_s: float | None = None
    gap_p50_s: float | None = None
    """Half of the gaps between tokens of the first choice were shorter, as the engine's loop saw them."""
    gap_p99_s: float | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a request is from its first token. `queue_position` counts from 1; 0: it is being served."""

    queue_position: int
    prefill_done: int
    prefill_total: int
    """Tokens of the prompt."""


class Event(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One entry of a response's log. The garbage collector passes it by: logs hold many, and none is part of a cycle.

    kind `prompt`  the prompt's log-probabilities, when asked for, before the first delta;
    kind `delta`   new tokens and text of choice `index`; a lagging reader gets several merged into one;
    kind `finish`  choice `index` is over: `finish_reason` says why, `text` and `token_ids` hold its last part;
    kind `done`    the response is over: always the last, exactly once; `finish_reason` is that of the last choice
                   to end, `usage` and `times` are set, `error` says what went wrong if something did.

    `seq` rises within a response; a merged delta carries the highest it covers. `matched` is the stop string or the
    end id that was found. With `output="cumulative"` text and ids are all so far; otherwise what is new.
    """

    response_id: str
    seq: int
    kind: Literal["prompt", "delta", "finish", "done"]
    index: int = 0
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    finish_reason: FinishReason | None = None
    matched: str | int | None = None
    usage: Usage | None = None
    times: Times | None = None
    error: str | None = None
