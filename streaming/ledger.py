"""Whose each open answer is, and what it used: told to the quotas and the metrics, and to the log when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from ..runtime.observer import Observer
from ..runtime.response import Response
from .access.quotas import Quotas
from .logs import log_usage, request_id
from .metrics import Metrics
from .principal import Principal


class _Account:
    """`prompt_is_due`: nothing has been charged for the prompt yet."""

    __slots__ = ("key", "prompt_is_due", "request_id")

    def __init__(self, key: str) -> None:
        self.key = key
        self.request_id = request_id.get()
        self.prompt_is_due = True


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

    def advanced(self, response: Response, num_tokens: int) -> None:
        account = self._open.get(response.id)
        if account is None:
            return
        if response.gap_s is not None:
            self._metrics.gap(account.key, response.gap_s)
        self._charge(account, response, num_tokens)

    def ended(self, response: Response) -> None:
        account = self._open.pop(response.id, None)
        if account is None:
            return
        self._quotas.leave(account.key)
        self._charge(account, response, 0)
        done = response.log.last
        self._metrics.ended(account.key, done, response.finish_reasons)
        usage, times = done.usage, done.times
        assert usage is not None and times is not None
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

    def _charge(self, account: _Account, response: Response, num_tokens: int) -> None:
        if account.prompt_is_due:
            account.prompt_is_due = False
            num_tokens += response.prompt_tokens
        self._quotas.charge(account.key, num_tokens)
