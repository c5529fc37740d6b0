"""The loop's side of an engine: who waits, who is being served, and what became of the rest.

Touched by the engine's loop alone. Requests come in through `admit`, the worker's reports through `receive`; commands
go out through the inbox. Every admitted request is sealed exactly once: by the worker's last output, by a stop string
that its response finds, by a cancel, by its deadline, or by `end_all`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from .backend import Tokenizer
from .batch import Capacity
from .config import EngineConfig
from .errors import InvalidField
from .events import FinishReason
from .inbox import Inbox
from .layout import Layout
from .messages import Cancel, Generate, Look, Output, Report, SchedulerStats, Unpin
from .observer import Observer
from .params import SamplingParams
from .queue import RequestQueue
from .response import Response
from .retention import Retention
from .stats import Stats

SWEEP_S, TELL_S = 1.0, 0.25
"""Finished responses are looked at, and observers hear what open ones gained, no more often than this."""

logger = logging.getLogger("jitney")


class Dispatcher:
    """`stats` holds the worker's latest counters; `idle` is set while no response is open."""

    def __init__(
        self,
        config: EngineConfig,
        tokenizer: Tokenizer,
        inbox: Inbox,
        clock: Callable[[], float],
        observers: Sequence[Observer] = (),
    ) -> None:
        self.stats = SchedulerStats()
        self.max_rows = 1
        """What the step holds, once it is open."""
        self.idle = asyncio.Event()
        self.idle.set()
        self._layout: Layout | None = None
        self._finished: Counter[str] = Counter()
        self._prompt_tokens = self._generated_tokens = self._late_events = 0
        self._config = config
        self._tokenizer = tokenizer
        self._inbox = inbox
        self._clock = clock
        self._observers = observers
        self._queue = RequestQueue(max_requests=config.max_queued, max_tokens=config.max_queued_tokens)
        self._responses: dict[str, Response] = {}
        self._by_key: dict[str, Response] = {}
        """The same, as the worker names them."""
        self._parting: dict[str, int] = {}
        """Names of which the worker may still say something, with the number of the cancel that ends that."""
        self._sent_cancels = 0
        self._kept = Retention(max_age_s=config.keep_finished_s, max_bytes=config.keep_finished_bytes)
        self._sweep: asyncio.TimerHandle | None = None
        self._sent: dict[Response, None] = {}
        """Those that the worker has: they may gain something."""
        self._told_at = -TELL_S
        self._num_open = self._sent_rows = 0
        self._timer: asyncio.TimerHandle | None = None

    def snapshot(self, state: str, step_age_s: float) -> Stats:
        """The counters of this side and the worker's latest."""
        worker = self.stats
        return Stats(
            state=state,
            waiting=len(self._queue) + worker.waiting,
            running=worker.running,
            kv_pages_total=worker.pages_total,
            kv_pages_used=worker.pages_used,
            kv_pages_pinned=worker.pages_pinned,
            kept_responses=len(self._kept),
            kept_bytes=self._kept.num_bytes,
            prefix_queries=worker.prefix_queries,
            prefix_hits=worker.prefix_hits,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=worker.preemptions,
            finished=dict(self._finished),
            late_events=self._late_events,
            steps=worker.steps,
            step_age_s=step_age_s,
        )

    def admit(self, request: Generate, params: SamplingParams) -> Response:
        """Open a response and queue the request. Raises `QueueFull`, or `InvalidField` for an id in use."""
        if request.id in self._responses:
            raise InvalidField("response_id", "an id that is not in use", request.id)
        response_id, request = request.id, self._named(request)
        self._queue.push(request, retry_after_s=self._retry_after_s())
        response = Response(
            request,
            params,
            self._tokenizer,
            self._clock,
            self.cancel,
            self._queue.position,
            self.forget,
            response_id=response_id,
        )
        self._responses[response_id] = self._by_key[request.id] = response
        self._num_open += 1
        self.idle.clear()
        self._feed()
        return response

    def opened(self, capacity: Capacity) -> None:
        """The step is open, and this is what it holds."""
        self.stats = SchedulerStats(free_rows=capacity.max_rows, pages_total=capacity.num_pages - 1)
        self.max_rows = capacity.max_rows

    def stopped(self) -> None:
        """The worker has ended, and with it all that was seated."""
        self.stats = msgspec.structs.replace(self.stats, running=0, waiting=0, pages_used=0)

    def look(self) -> Layout | None:
        """The layout that the worker posted last; it is asked for another."""
        self._inbox.put(Look())
        return self._layout

    def receive(self, report: Report | Layout) -> None:
        """Take in a turn's news and feed the seats that it freed."""
        if isinstance(report, Layout):
            self._layout = report
            return
        self.stats = report.stats
        now = self._clock()
        for output in report.outputs:
            if isinstance(output, Output):
                self._take(output.id, output.choice, output, now)
                continue
            for (key, choice), tokens in zip(output.names, output.tokens, strict=True):
                self._take(key, choice, tokens, now)
        heard = report.stats.received_cancels
        if self._parting:
            self._parting = {key: number for key, number in self._parting.items() if number > heard}
        if now >= self._told_at + TELL_S:
            self._told_at = now
            self._tell(self._sent)
        self._feed()

    def find(self, response_id: str) -> Response | None:
        """An open response, or one that ended not too long ago."""
        self._drop_expired()
        return self._responses.get(response_id)

    def cancel(self, response_id: str) -> bool:
        """End a response now. True if it was open."""
        response = self._responses.get(response_id)
        if response is None or response.done:
            return False
        if not self._queue.remove(response.request.id):
            self._withdraw(response)
        self._end(response, "cancelled")
        return True

    def end_all(self, reason: FinishReason, error: str | None = None) -> None:
        """Seal what is open. The worker is not told: it is stopping."""
        for response in [r for r in self._responses.values() if not r.done]:
            self._queue.remove(response.request.id)
            self._end(response, reason, error)
        self._set_timer(None)
        if self._sweep is not None:
            self._sweep.cancel()

    def forget(self, response_id: str) -> bool:
        """Keep a finished response no longer. False if it is not kept."""
        if response_id not in self._kept:
            return False
        self._kept.remove(response_id)
        self._drop(response_id)
        return True

    def _named(self, request: Generate) -> Generate:
        """Under another name where the worker may still have news of one that had this: they would be taken for its."""
        key = request.id
        while key in self._parting or key in self._by_key:
            key += "'"
        return request if key == request.id else msgspec.structs.replace(request, id=key)

    def _withdraw(self, response: Response, index: int | None = None) -> None:
        """Have the worker end a request, or one choice of it, of which the log wants no more."""
        self._sent_cancels += 1
        self._parting[response.request.id] = self._sent_cancels
        self._inbox.put(Cancel(response.request.id, index))

    def _take(self, key: str, index: int, told: Output | tuple[int, ...], now: float) -> None:
        """One choice's news: an output, or tokens of which nothing else is to be told."""
        response = self._by_key.get(key)
        if response is None or response.log.is_sealed:
            self._late_events += 1
            return
        try:
            if response.take(told, now) if isinstance(told, Output) else response.advance(index, told, now):
                self._withdraw(response, index)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # A tokenizer's panic is no Exception; it ends this request and no other.
            logger.exception("%s: its text could not be made", response.id)
            self._withdraw(response)
            response.break_off(f"its text could not be made: {type(error).__name__}: {error}")
        if response.log.is_sealed:
            self._over(response)

    def _tell(self, responses: Iterable[Response]) -> None:
        """What these have gained."""
        gains = [gain for response in responses if (gain := response.gain()).num_tokens]
        for gain in gains:
            self._generated_tokens += gain.num_tokens
            self._queue.charge(gain.response.request.user, gain.num_tokens)
        for observer in self._observers if gains else ():
            observer.advanced(gains)

    def _feed(self) -> None:
        """Send the worker as many requests as it has seats to spare, and one more so that no seat waits for us."""
        for late in self._queue.expire(self._clock()):
            self._end(self._by_key[late.id], "deadline")
        while self.stats.free_rows + 1 > self._sent_rows - self.stats.received_rows:
            request = self._queue.pop()
            if request is None:
                break
            self._sent_rows += request.n
            self._prompt_tokens += len(request.prompt)
            self._queue.charge(request.user, len(request.prompt))
            response = self._by_key[request.id]
            response.dispatched()
            self._sent[response] = None
            self._inbox.put(request)
        self._set_timer(self._queue.next_deadline)

    def _set_timer(self, deadline: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            wait_s = max(0.0, deadline - self._clock())
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._feed)

    def _end(self, response: Response, reason: FinishReason, error: str | None = None) -> None:
        response.end(reason, error)
        self._over(response)

    def _over(self, response: Response) -> None:
        """Account for a response that has just been sealed, and keep it for those who come back."""
        self._tell([response])
        self._sent.pop(response, None)
        self._queue.leave(response.request.user)
        self._late_events += response.log.num_discarded
        self._finished.update(response.finish_reasons)
        self._kept.keep(response.id, response.num_bytes, self._clock())
        self._num_open -= 1
        if not self._num_open:
            self.idle.set()
        for observer in self._observers:
            observer.ended(response)
        self._forget_old()

    def _forget_old(self) -> None:
        """Drop what has been kept long enough, and come back when there will be more."""
        self._drop_expired()
        if self._kept.next_expiry is not None and self._sweep is None:
            wait_s = max(SWEEP_S, self._kept.next_expiry - self._clock())
            self._sweep = asyncio.get_running_loop().call_later(wait_s, self._swept)

    def _swept(self) -> None:
        self._sweep = None
        self._forget_old()

    def _drop_expired(self) -> None:
        for response_id in self._kept.expired(self._clock()):
            self._drop(response_id)

    def _drop(self, response_id: str) -> None:
        response = self._responses.pop(response_id)
        del self._by_key[response.request.id]
        if response.request.pin:
            self._inbox.put(Unpin(response.request.id))
        response.is_forgotten = True
        if response.when_forgotten is not None:
            response.when_forgotten()

    def _retry_after_s(self) -> float:
        """A guess: a second for each time that the seats must be filled before a new request has its turn."""
        return min(60.0, max(1.0, len(self._queue) / self.max_rows))
