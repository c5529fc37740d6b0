"""`jitney chat`: a conversation in the terminal, or the answers to the lines of standard input, with a model of one's
own or with a server's.

Only answers go to standard output. The event loop runs while an answer is streamed and rests while a question
is typed, so that the terminal's line editing works and Ctrl-C has its own meaning at each of the two places.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Annotated, Any

import msgspec
import typer

from ...runtime.errors import ContextLengthExceeded, GenerationFailed, InvalidField, JitneyError, RequestError
from ...runtime.events import Event
from ...runtime.params import SamplingParams
from ...runtime.process import num_cores
from .answer_view import AnswerView, answer_view
from .engine_options import EngineOptions
from .opening import opened, stderr
from .options import DEFAULT_MODEL, Model, Scripted, is_default, with_options
from .remote import Talker, remote

LOCAL = (*EngineOptions.__struct_fields__, "scripted")
"""Options that say how a model of one's own is run."""
HELP = "/new starts over, /help shows this; Ctrl-C stops an answer, Ctrl-D leaves."


@with_options
def chat(
    ctx: typer.Context,
    model: Model = DEFAULT_MODEL,
    url: Annotated[
        str | None, typer.Option(help="Talk to this server in place of a model of one's own.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="JITNEY_API_KEY", help="The server's key.", show_envvar=True)
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 to 2.  [default: the model's own; 0 where the input is piped]")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Length of an answer.  [default: 1024, or half of a shorter context]")
    ] = None,
    scripted: Scripted = None,
    *,
    engine: EngineOptions,
) -> None:
    """Talk to a model in the terminal. Piped, it answers each line of its input, greedily."""
    if url is not None and not all(is_default(ctx, name) for name in LOCAL):
        raise InvalidField(
            "--url", f"none of {', '.join('--' + name.replace('_', '-') for name in LOCAL)} beside it", url
        )
    typed = sys.stdin.isatty()
    if temperature is None and not typed:
        temperature = 0.0
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens)
    config = engine.config(num_threads=num_cores())
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            if url is None:
                own = runner.run(stack.enter_async_context(opened(model, scripted, config)))
                if max_tokens is None:
                    params = msgspec.structs.replace(params, max_tokens=min(1024, own.context_length // 2))
                talker: Talker = own
            else:
                named = None if is_default(ctx, "model") else model
                talker = runner.run(stack.enter_async_context(remote(url, api_key=api_key, model=named)))
            conversation = Conversation(runner, talker, params, system)
            if typed:
                _in_terminal(conversation)
            else:
                _over_pipe(conversation)
        finally:
            runner.run(stack.aclose())


class Conversation:
    """The messages so far, and the one way to add to them."""

    def __init__(
        self, runner: asyncio.Runner, engine: Talker, params: SamplingParams, system: str | None
    ) -> None:
        self._runner = runner
        self._engine = engine
        self._params = params
        self._system = [{"role": "system", "content": system}] if system else []
        self._messages: list[dict[str, Any]] = []

    def clear(self) -> None:
        self._messages = []

    def ask(self, question: str) -> None:
        """Stream the answer to standard output. Ctrl-C ends it and raises; what was said until then is kept.

        Raises `JitneyError`, with the conversation as it was before the question.
        """
        before = list(self._messages)
        self._messages.append({"role": "user", "content": question})
        view = answer_view()
        try:
            self._runner.run(self._answer(view))
        except JitneyError:
            self._messages = before
            raise
        finally:
            view.end()

    async def _answer(self, view: AnswerView) -> None:
        said: list[str] = []
        try:
            async with aclosing(self._events()) as events:
                async for event in events:
                    if event.error is not None:
                        raise GenerationFailed(event.error)
                    said.append(event.text)
                    view.write(event.text)
        finally:
            self._messages.append({"role": "assistant", "content": "".join(said)})

    async def _events(self) -> AsyncGenerator[Event, None]:
        """The answer's events, after forgetting the oldest exchanges where the context is too short for all."""
        while True:
            try:
                async with aclosing(
                    self._engine.stream(self._system + self._messages, self._params)
                ) as events:
                    async for event in events:
                        yield event
                return
            except ContextLengthExceeded:
                if len(self._messages) < 3:
                    raise
                del self._messages[:2]
                stderr().print("The context is full: the oldest question and its answer are forgotten.")


def _over_pipe(conversation: Conversation) -> None:
    for line in sys.stdin:
        if line.strip():
            conversation.ask(line.strip())


def _in_terminal(conversation: Conversation) -> None:
    stderr().print(HELP, style="dim")
    for question in _questions():
        if question == "/help":
            stderr().print(HELP)
        elif question == "/new":
            conversation.clear()
        elif question.startswith("/"):
            stderr().print(f"{question.split()[0]} is not a command. {HELP}")
        else:
            try:
                conversation.ask(question)
            except KeyboardInterrupt:
                continue
            except (RequestError, GenerationFailed) as error:
                stderr().print(str(error), style="red")


def _questions() -> Iterator[str]:
    """Typed lines that are not empty, until Ctrl-D or Ctrl-C."""
    with suppress(ImportError):
        import readline  # noqa: F401  gives input() line editing and a history
    while True:
        if not sys.stdout.isatty():
            stderr().print("> ", end="")
        try:
            line = input("> " if sys.stdout.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            stderr().print()
            return
        if line:
            yield line
