"""A blocking engine for scripts, with the call that Megatron-LM's users know.

It runs a `DynamicEngine` on a loop of its own, in a thread of its own. Only where that says that it cannot serve, or
with `legacy=True`, a plain padded batch runs instead; any other error reaches the caller.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from anyio.from_thread import start_blocking_portal

from ..backend import Backend
from ..checks import from_fields
from ..config import EngineConfig
from ..errors import CannotServe, EngineClosed, InvalidField
from ..events import Event
from ..intake import Options, Prompt
from ..params import SamplingParams
from ..stats import Stats
from .abstract import AbstractEngine
from .answers import each_prompt
from .dynamic import DynamicEngine
from .megatron import MegatronFields
from .padded import PaddedEngine

logger = logging.getLogger("jitney")
T = TypeVar("T")
P = ParamSpec("P")


class StaticEngine(AbstractEngine):
    """Opens at once: `StaticEngine("smollm2-135m").generate(["Hello"], SamplingParams(max_tokens=8))`.

    Use it as a context manager, or call `close`; what is open when the program ends is closed then. Any thread may
    call it. Raises `ModelError`, and `CannotServe` where padded batches cannot serve either; falls back with one
    warning.
    """

    def __init__(
        self, model: str | Path | Backend, config: EngineConfig | None = None, *, legacy: bool = False
    ) -> None:
        self._exits = ExitStack()
        self._lock = threading.Lock()
        self._closed = False
        self._portal = self._exits.enter_context(start_blocking_portal("asyncio"))
        try:
            self._engine = self._open(model, config, legacy)
        except BaseException:
            self._exits.close()
            raise
        atexit.register(self.close)

    def __enter__(self) -> StaticEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def backend(self) -> Backend:
        return self._engine.backend

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | dict[str, Any] | None = None,
        **fields: Any,
    ) -> list[dict[str, Any]]:
        """Whole answers as dicts, in the order of the prompts; the keys are those of `DynamicEngine.generate`.

        Megatron's sampling fields go in as keywords or as one dict; each is honoured or refused by name. With
        `return_segments` an answer also has `segments`, its tokens as text; with `return_prompt_tokens`,
        `prompt_tokens`. `Options` (a deadline, a user) go in as keywords too.
        """
        options = {name: fields.pop(name) for name in Options.__struct_fields__ if name in fields}
        if isinstance(sampling_params, dict):
            fields = {**sampling_params, **fields}
            sampling_params = None
        if not fields:
            return self._call(self._engine.generate, prompts, sampling_params, **options)
        if sampling_params is not None:
            raise InvalidField(
                next(iter(fields)), "either SamplingParams or Megatron's fields, not both", sampling_params
            )
        wish = from_fields(MegatronFields, fields)
        listed = [prompt for prompt, _ in each_prompt(prompts, None)]
        told = from_fields(Options, options)
        ids = [self._ids(prompt, wish, told) for prompt in listed]
        params = [wish.params(len(each)) for each in ids]
        answers = self._call(self._engine.generate, ids, params, **options)
        return [self._shaped(*each, wish) for each in zip(answers, listed, strict=True)]

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, **options: Any
    ) -> Iterator[Event]:
        """The events of one answer, as they come. Leaving the loop cancels the request."""
        events = self._engine.stream(prompt, sampling_params, **options)
        try:
            while (event := self._call(anext, events, None)) is not None:
                yield event
        finally:
            if not self._closed:
                self._call(events.aclose)

    def cancel(self, response_id: str) -> bool:
        return self._call(self._engine.cancel, response_id)

    def drain(self, timeout_s: float | None = None) -> bool:
        return self._call(self._engine.drain, timeout_s)

    def stats(self) -> Stats:
        return self._engine.stats()

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._call(self._engine.close)
                self._closed = True
                self._exits.close()
                atexit.unregister(self.close)

    def _open(
        self, model: str | Path | Backend, config: EngineConfig | None, legacy: bool
    ) -> DynamicEngine | PaddedEngine:
        if legacy:
            return self._open_padded(model, config)
        engine = DynamicEngine(model, config)
        try:
            self._portal.call(engine.start)
            return engine
        except CannotServe as error:
            try:
                padded = self._open_padded(model, config)
            except (CannotServe, InvalidField):
                raise error from None
            logger.warning(
                "continuous batching cannot serve this model here (%s); padded batches instead", error
            )
            return padded

    def _open_padded(self, model: str | Path | Backend, config: EngineConfig | None) -> PaddedEngine:
        padded = PaddedEngine(model, config)
        self._portal.call(padded.start)
        return padded

    def _call(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise EngineClosed("the engine is closed")
        return self._portal.call(partial(function, *args, **kwargs))

    def _ids(self, prompt: Prompt, wish: MegatronFields, told: Options) -> Sequence[int]:
        """The prompt's token ids: `num_tokens_total` and `add_BOS` need them before the request is made."""
        if wish.add_BOS is not None and not isinstance(prompt, str):
            raise InvalidField("add_BOS", "a prompt of plain text to go with it", prompt)
        add_bos = told.add_bos if wish.add_BOS is None else wish.add_BOS
        encode = self._engine.intake.encode
        return self._call(encode, prompt, add_bos=add_bos, template_options=told.template_options)

    def _shaped(self, answer: dict[str, Any], prompt: Prompt, wish: MegatronFields) -> dict[str, Any]:
        answer = {**answer, "prompt": prompt}
        if wish.return_segments:
            answer["segments"] = [self.backend.tokenizer.token_text(token) for token in answer["tokens"]]
        if wish.return_prompt_tokens:
            answer["prompt_tokens"] = answer["prompt_token_ids"]
        return answer
