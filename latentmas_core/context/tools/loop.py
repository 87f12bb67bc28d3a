"""Ask, run the tools that the answer calls, ask again: a bounded loop around any way of asking.

Knows neither engines nor HTTP.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import NamedTuple

from pydantic import Field

from latentmas_core.chat import ChatMessage, ToolCall
from latentmas_core.config import FrozenModel
from latentmas_core.context.tools.messages import messages_of_round
from latentmas_core.context.tools.registry import ToolRegistry
from latentmas_core.context.tools.rounds import Round, joined
from latentmas_core.context.tools.running import run_tool
from latentmas_core.context.tools.step import Known, Step, step_of
from latentmas_core.context.tools.tool import Tool
from latentmas_core.context.tools.voice import Voice
from latentmas_core.errors import ConfigError, DeadlineError
from latentmas_core.events import AnswerDelta, AnswerDone, Event, ToolFinished, ToolStarted
from latentmas_core.request import ReasonRequest
from latentmas_core.result import ToolCallTrace

Ask = Callable[[ReasonRequest], AsyncGenerator[Event, None]]

GAP = "\n\n"  # between what was said before a call and after it
LAST_NOTE = "[No more tools can be called. Answer now with what is known.]"


class ToolLimits(FrozenModel):
    """What bounds the calls of tools for one question."""

    max_rounds: int = Field(default=4, ge=1, le=32)
    """Rounds of calls; then the model is asked once more, without tools. Each round runs all
    agents."""
    max_calls: int = Field(default=8, ge=1, le=64)
    """Calls of one round, which run at the same time."""
    max_result_chars: int = Field(default=4000, ge=100)
    """Characters of a result; a longer one is cut."""


class ToolLoop:
    """Serves any number of requests at the same time; it holds nothing between them."""

    def __init__(
        self,
        registry: ToolRegistry,
        *,
        limits: ToolLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._limits = limits or ToolLimits()
        self._clock = clock

    def run(
        self, ask: Ask, request: ReasonRequest, enabled: Iterable[str]
    ) -> AsyncGenerator[Event, None]:
        """The events of all rounds as of one run, with ToolStarted and ToolFinished between.

        Tools of the registry that are ``enabled`` are run here, at the same time where an answer
        calls several. An answer that calls one of ``request.tools`` is the last: its text is the
        model's, for the caller to run the tool and ask again. With nothing enabled this is ``ask``.

        The pieces join to ``final_answer``, which is what was said in all rounds, without the
        calls. Calls after the last round are not run, and there may be no answer then.
        ``request.timeout_s`` is for all of it. Closing the iteration ends tools that run.

        Raises at once NotFoundError for a tool that is unknown, ConfigError for one whose name a
        tool of the request has, too; later what ``ask`` raises, and DeadlineError.
        """
        tools = {name: self._registry.get(name) for name in enabled}
        taken = next((spec.name for spec in request.tools if spec.name in tools), None)
        if taken is not None:
            raise ConfigError(
                f"tools has {taken!r}, which is also a tool of the service. Give yours another "
                "name, or do not enable the other.",
                param="tools",
            )
        if not tools:
            return ask(request)
        return _Run(ask, request, tools, self._limits, self._clock).events()


class _Called(NamedTuple):
    """A call of round ``round``. A reason ``why_not`` to run it is its result."""

    round: int
    call: ToolCall
    why_not: str | None = None

    @property
    def call_id(self) -> str:
        assert self.call.call_id is not None, "a call of the loop has no id"
        return self.call.call_id

    def trace(self, text: str, *, is_error: bool, latency_ms: float = 0.0) -> ToolCallTrace:
        return ToolCallTrace(
            call_id=self.call_id,
            round=self.round,
            name=self.call.name,
            arguments=self.call.arguments,
            text=text,
            is_error=is_error,
            latency_ms=latency_ms,
        )


class _Run:
    """One request on its way through the rounds."""

    def __init__(
        self,
        ask: Ask,
        request: ReasonRequest,
        tools: Mapping[str, Tool],
        limits: ToolLimits,
        clock: Callable[[], float],
    ) -> None:
        self._ask = ask
        self._request = request
        self._tools = tools
        self._known = Known(tools.keys(), {spec.name for spec in request.tools})
        self._limits = limits
        self._clock = clock
        self._began_at = clock()
        self._rounds: list[Round] = []
        self._said: list[str] = []
        self._messages: list[ChatMessage] = []
        self._traces: list[ToolCallTrace] = []

    async def events(self) -> AsyncGenerator[Event, None]:
        has_ended = False
        while not has_ended:
            voice = Voice(GAP if self._said else "")
            async with aclosing(self._asked(voice)) as asked:
                async for event in asked:
                    yield event
            step = self._step()
            has_ended = not step.to_run
            for delta in voice.end(step.content, is_last=has_ended):
                yield delta
            if step.content:
                self._said.append(step.content)
            async with aclosing(self._call_tools(step)) as calls:
                async for event in calls:
                    yield event
        yield AnswerDone(
            joined(
                self._rounds,
                final_answer=GAP.join(self._said),
                tool_calls=self._traces,
                latency_ms=1000.0 * self._elapsed_s,
            )
        )

    @property
    def _elapsed_s(self) -> float:
        return self._clock() - self._began_at

    @property
    def _is_last(self) -> bool:
        """Whether the round that was asked last has no other behind it."""
        return len(self._rounds) > self._limits.max_rounds

    async def _asked(self, voice: Voice) -> AsyncGenerator[Event, None]:
        """One round, whose result is kept."""
        started_ms = 1000.0 * self._elapsed_s if self._rounds else 0.0
        async with aclosing(self._ask(self._next_request())) as events:
            async for event in events:
                if isinstance(event, AnswerDone):
                    self._rounds.append(Round(event.result, started_ms))
                elif isinstance(event, AnswerDelta):
                    for delta in voice.add(event):
                        yield delta
                else:
                    yield event

    def _next_request(self) -> ReasonRequest:
        messages = list(self._messages)
        specs = [tool.spec for tool in self._tools.values()]
        if len(self._rounds) == self._limits.max_rounds:
            specs = []
            told = f"{messages[-1].content}\n\n{LAST_NOTE}"
            messages[-1] = messages[-1].model_copy(update={"content": told})
        changes = {
            "tools": (*self._request.tools, *specs),
            "tool_messages": (*self._request.tool_messages, *messages),
            "timeout_s": self._remaining_s(),
        }
        return self._request.model_copy(update=changes)

    def _remaining_s(self) -> float | None:
        if self._request.timeout_s is None:
            return None
        remaining_s = self._request.timeout_s - self._elapsed_s
        if remaining_s <= 0.0:
            raise DeadlineError(
                f"timeout_s is {self._request.timeout_s:g}; that was over after "
                f"{len(self._rounds)} rounds of calls. Raise it, or enable fewer tools.",
                param="timeout_s",
            )
        return remaining_s

    def _step(self) -> Step:
        text = self._rounds[-1].result.final_answer
        return step_of(text, self._known, max_calls=self._limits.max_calls, is_last=self._is_last)

    async def _call_tools(self, step: Step) -> AsyncGenerator[Event, None]:
        """Runs the calls; the traces and messages are in the order of the calls, the events in that
        in which they end."""
        wanted = [(call, None) for call in step.to_run] + list(step.refused)
        if not wanted:
            return
        calls = [
            _Called(len(self._rounds), self._with_id(call, index), why_not)
            for index, (call, why_not) in enumerate(wanted)
        ]
        for one in calls:
            if one.why_not is None:
                yield ToolStarted(one.call_id, one.round, one.call.name, one.call.arguments)
        running = [asyncio.create_task(self._trace_of(one)) for one in calls]
        try:
            for ended in asyncio.as_completed(running):
                yield ToolFinished(await ended)
        finally:
            await _end_all(running)
        traces = [task.result() for task in running]
        self._traces += traces
        self._messages += messages_of_round(step.content.strip(), traces)

    def _with_id(self, call: ToolCall, index: int) -> ToolCall:
        # Nine letters and digits: the only ids that some templates take.
        return call.model_copy(update={"call_id": f"call{len(self._rounds):02}{index:03}"})

    async def _trace_of(self, one: _Called) -> ToolCallTrace:
        if one.why_not is not None:
            return one.trace(one.why_not, is_error=True)
        tool = self._tools[one.call.name]
        began_at = self._clock()
        text, is_error = await run_tool(
            tool,
            one.call.arguments,
            timeout_s=min(tool.timeout_s, self._remaining_s() or tool.timeout_s),
            max_chars=self._limits.max_result_chars,
        )
        latency_ms = 1000.0 * (self._clock() - began_at)
        return one.trace(text, is_error=is_error, latency_ms=latency_ms)


async def _end_all(running: Sequence["asyncio.Task[ToolCallTrace]"]) -> None:
    for task in running:
        task.cancel()
    await asyncio.wait(running)
