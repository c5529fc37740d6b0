"""Whole answers: which prompts a `generate` call names, and the dict that comes back for each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import msgspec

from ..checks import from_fields
from ..config import EngineConfig
from ..errors import InvalidField, QueueFull
from ..events import Event
from ..intake import Options, Prompt
from ..log import joined
from ..messages import Generate
from ..params import MAX_COUNT, SamplingParams
from ..response import Response

Accept = Callable[[Prompt, SamplingParams, Options], Awaitable[Generate]]
Admit = Callable[[Generate, SamplingParams], Response]


def each_prompt(
    prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
) -> list[tuple[Prompt, SamplingParams | None]]:
    """Pairs of prompt and parameters. A string, a list of ids and a list of messages are one prompt each."""
    if not isinstance(prompts, Sequence) or isinstance(prompts, (bytes, bytearray)):
        raise InvalidField("prompts", "a prompt or a list of prompts", prompts)
    one = isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], (int, dict)))
    listed = cast("list[Prompt]", [prompts] if one else list(prompts))
    if params is None or isinstance(params, SamplingParams):
        return [(prompt, params) for prompt in listed]
    if not isinstance(params, Sequence) or len(params) != len(listed):
        raise InvalidField("sampling_params", f"one, or as many as the {len(listed)} prompts", params)
    return list(zip(listed, params, strict=True))


def checked(params: SamplingParams | None, options: dict[str, Any]) -> tuple[SamplingParams, Options]:
    """The parameters and options of a call, or `InvalidField`."""
    if params is None:
        params = SamplingParams()
    if not isinstance(params, SamplingParams):
        raise InvalidField("sampling_params", "SamplingParams", params)
    return params, from_fields(Options, options)


def checked_config(config: EngineConfig | None) -> EngineConfig:
    """The settings, or the defaults, or `InvalidField`."""
    if config is None:
        return EngineConfig()
    if not isinstance(config, EngineConfig):
        raise InvalidField("config", "EngineConfig", config)
    return config


async def answer_all(
    jobs: list[tuple[Prompt, SamplingParams | None]],
    options: dict[str, Any],
    accept: Accept,
    admit: Admit,
    window: int,
) -> list[dict[str, Any]]:
    """Answers in the order of the jobs, at most `window` of them open at a time. Nothing runs unless all are in
    order; leaving early cancels the rest."""
    if len(jobs) > 1 and options.get("response_id") is not None:
        raise InvalidField("response_id", "a single prompt to go with it", options["response_id"])
    asked = [(prompt, *checked(given, options)) for prompt, given in jobs]
    order = _longest_first([params for _, params, _ in asked])
    accepted = [(*asked[place][:2], await accept(*asked[place])) for place in order]
    responses: list[Response] = []
    places = asyncio.Semaphore(window)

    async def run(prompt: Prompt, params: SamplingParams, request: Generate) -> dict[str, Any]:
        async with places:
            response = await _admit_in_turn(request, params, admit, responses)
            responses.append(response)
            try:
                await response.log.wait_sealed()
                return fold(prompt, response)
            finally:
                response.cancel()

    tasks = [asyncio.ensure_future(run(*job)) for job in accepted]
    try:
        answers = dict(zip(order, await asyncio.gather(*tasks), strict=True))
        return [answers[place] for place in range(len(answers))]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _longest_first(params: Sequence[SamplingParams]) -> list[int]:
    """Places of answers in the order in which they begin: at the end few rows are left, and a step of few takes almost
    as long as one of many, so the answer that may become longest must not be last (R. L. Graham, "Bounds on
    Multiprocessing Timing Anomalies", 1969). One without a limit counts as the longest; equals stay in order."""
    return sorted(range(len(params)), key=lambda place: -(params[place].max_tokens or MAX_COUNT))


async def _admit_in_turn(
    request: Generate, params: SamplingParams, admit: Admit, siblings: list[Response]
) -> Response:
    """Admit one of a batch. Where the queue is full it waits for a sibling's end, and raises if none is open."""
    while True:
        try:
            return admit(request, params)
        except QueueFull:
            sibling = next((response for response in siblings if not response.done), None)
            if sibling is None:
                raise
        await sibling.log.wait_sealed()


def fold(prompt: Prompt, response: Response) -> dict[str, Any]:
    """A sealed response as one dict: `id`, `prompt`, `prompt_token_ids`, `choices` (each `index`, `text`, `token_ids`,
    `finish_reason`, `matched`, `logprobs`), the first choice's `text`, `tokens` and `finish_reason`,
    `prompt_logprobs`, `usage`, `times` and `error`."""
    parts: list[list[Event]] = [[] for _ in range(response.request.n)]
    prompt_logprobs: list[Any] = []
    events = response.log.read(0)
    for event in events:
        if event.kind == "prompt":
            prompt_logprobs += event.prompt_logprobs or ()
        elif event.kind != "done":
            parts[event.index].append(event)
    choices = [_choice(joined(each)) for each in parts]
    return {
        "id": response.id,
        "prompt": prompt,
        "prompt_token_ids": list(response.request.prompt),
        "text": choices[0]["text"],
        "tokens": choices[0]["token_ids"],
        "finish_reason": choices[0]["finish_reason"],
        "choices": choices,
        "prompt_logprobs": msgspec.to_builtins(prompt_logprobs) or None,
        "usage": msgspec.to_builtins(events[-1].usage),
        "times": msgspec.to_builtins(events[-1].times),
        "error": events[-1].error,
    }


def _choice(whole: Event) -> dict[str, Any]:
    return {
        "index": whole.index,
        "text": whole.text,
        "token_ids": list(whole.token_ids),
        "finish_reason": whole.finish_reason,
        "matched": whole.matched,
        "logprobs": None if whole.logprobs is None else list(msgspec.to_builtins(whole.logprobs)),
    }
