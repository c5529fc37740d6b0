"""Whose each open answer is, and what it used: told to the quotas and the metrics, and to the log when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from ..runtime.observer import Gain, Observer
from ..runtime.response import Response
from .access.quotas import Quotas
from .logs import log_usage, request_id
from .metrics import Metrics
from .principal import Principal


class _Account:
    __slots__ = ("key", "request_id")

    def __init__(self, key: str) -> None:
        self.key = key
        self.request_id = request_id.get()


class Ledger(Observer):
    """Observes an engine for one app. Answers that did not come through the app are nobody's, and left alone.

    `model` is the name that the app serves it under.
    """

    def __init__(self, quotas: Quotas, metrics: Metrics, model: Callable[[], str]) -> None:
        self._quotas = quotas
        self._metrics = metrics
        self._model = model
        self._open: dict[str, _Account] = {}

    @contextmanager
    def opening(self, response_id: str, principal: Principal) -> Iterator[None]:
        """Around the submission of an answer. Raises `QueueFull` where its key has no room for it."""
        self._quotas.enter(principal.key)
        self._open[response_id] = _Account(principal.key)
        try:
            yield
        except BaseException:
            if self._open.pop(response_id, None) is not None:
                self._quotas.leave(principal.key)
            raise

    def key_of(self, response_id: str) -> str:
        """The name of the key that an open answer came with; empty where it needed none."""
        account = self._open.get(response_id)
        return "" if account is None else account.key

    def advanced(self, gains: Sequence[Gain]) -> None:
        """A prompt is charged for with its first token, or at its end."""
        for gain in gains:
            account = self._open.get(gain.response.id)
            if account is not None:
                prompt = gain.response.prompt_tokens if gain.is_first else 0
                self._quotas.charge(account.key, prompt + gain.num_tokens)
                self._metrics.gaps(account.key, gain.gaps)

    def ended(self, response: Response) -> None:
        account = self._open.pop(response.id, None)
        if account is None:
            return
        self._quotas.leave(account.key)
        done = response.log.last
        self._metrics.ended(account.key, done, response.finish_reasons)
        usage, times = done.usage, done.times
        assert usage is not None and times is not None
        if not usage.completion_tokens:
            self._quotas.charge(account.key, usage.prompt_tokens)
        log_usage(
            response=response.id,
            request=account.request_id,
            key=account.key,
            model=self._model(),
            finish=done.finish_reason or "",
            **msgspec.structs.asdict(usage),
            queued_s=times.queued_s,
            first_token_s=times.first_token_s,
            total_s=times.total_s,
        )
