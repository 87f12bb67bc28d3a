"""The spans of a run: the run, each attempt at a stage, the stage in its replica, its agents' turns
and the phases of those. Attributes are names of the config, ids and numbers, never what was said.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from opentelemetry.trace import INVALID_SPAN, Span, SpanKind

from deployments.messages import Place, StageCall, StageMade
from deployments.tracing import (
    NO_TRACING,
    TraceContext,
    Tracing,
    as_trace_context,
    attributes_of,
    below,
    continued,
    note_end,
)
from latentmas_core.events import (
    AgentFinished,
    AgentPhase,
    AgentStarted,
    AnswerDone,
    Event,
    StageGivenUp,
)
from latentmas_core.phases import Phase
from latentmas_core.pipelines.plan import Stage
from latentmas_core.pipelines.stage_worker import StageItem
from latentmas_core.request import ReasonRequest
from latentmas_core.result import AgentTrace, PhaseDurations, Result

NS_PER_MS = 1e6


@contextmanager
def run_spans(tracing: Tracing, request: ReasonRequest, run_id: str) -> "Iterator[RunSpans]":
    """Of a request whose pipeline is offered, below the span that is current."""
    with tracing.span(
        f"run {request.pipeline}",
        latentmas__run_id=run_id,
        latentmas__pipeline=request.pipeline,
        latentmas__mode=request.mode.value,
        latentmas__handoff=request.handoff.value,
    ) as span:
        yield RunSpans(tracing, span)


class RunSpans:
    """In the ingress: one run and, below it, every attempt at one of its stages."""

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing = tracing
        self._span = span
        self._num_attempts: Counter[str] = Counter()

    def note(self, event: Event) -> None:
        """Show it every event of the run."""
        if isinstance(event, AnswerDone):
            self._span.set_attributes(_of_result(event.result))
        elif isinstance(event, StageGivenUp):
            self._span.add_event("stage given up", {"latentmas.stage": event.stage})

    @contextmanager
    def attempt(self, stage: Stage) -> "Iterator[Attempt]":
        """From handing a stage to its group until its end is here, good or bad."""
        self._num_attempts[stage.name] += 1
        with self._tracing.span(
            f"call {stage.name}",
            parent=below(self._span),
            kind=SpanKind.CLIENT,
            latentmas__attempt=self._num_attempts[stage.name],
            **_of_stage(stage),
        ) as span:
            yield Attempt(span)


NO_SPANS = RunSpans(NO_TRACING, INVALID_SPAN)


class Attempt:
    """One attempt at a stage, as its caller sees it."""

    def __init__(self, span: Span) -> None:
        self._span = span

    @property
    def context(self) -> TraceContext:
        """What its replica continues."""
        return as_trace_context(self._span)

    def note_made(self, made: StageMade) -> None:
        self._span.set_attributes(_of_made(made))


@contextmanager
def stage_spans(tracing: Tracing, call: StageCall, place: Place) -> "Iterator[StageSpans]":
    """Of the attempt that ``call`` is. A turn that is under way at its end ended with it."""
    with tracing.span(
        f"stage {call.stage.name}",
        parent=continued(call.trace_context),
        kind=SpanKind.SERVER,
        latentmas__replica=place.replica,
        latentmas__run_id=call.origin.run_id,
        latentmas__request_id=call.origin.request_id,
        **_of_stage(call.stage),
    ) as span:
        spans = StageSpans(tracing, span)
        try:
            yield spans
        except BaseException as error:
            spans.cut_turn(error)
            raise


class StageSpans:
    """In a replica: one stage and, below it, what is done with memory and its agents' turns."""

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing = tracing
        self._span = span
        self._turn: TurnSpans | None = None

    @contextmanager
    def part(self, name: str, memory: object | None) -> Iterator[None]:
        """Something that is done with a memory, if there is one."""
        if memory is None:
            yield
            return
        with self._tracing.span(name, parent=below(self._span)):
            yield

    def note(self, item: StageItem) -> None:
        """Show it every item of the stage; agents take their turns one after the other."""
        if not self._tracing.is_on:
            return
        match item:
            case AgentStarted(agent):
                self._turn = TurnSpans(self._tracing, self._span, agent)
            case AgentPhase(_, phase) if self._turn is not None:
                self._turn.enter(phase)
            case AgentFinished(_, trace) if self._turn is not None:
                self._turn.finish(trace)
                self._turn = None

    def note_made(self, made: StageMade) -> None:
        self._span.set_attributes(_of_made(made))

    def cut_turn(self, error: BaseException) -> None:
        if self._turn is not None:
            self._turn.cut(error)
            self._turn = None


class TurnSpans:
    """One agent's turn and, below it, its phases.

    The phases of a turn that came to its end are as long as its engine measured them; those of
    another are told by when their events came.
    """

    def __init__(self, tracing: Tracing, stage: Span, agent: str) -> None:
        self._tracing = tracing
        self._began_at = time.time_ns()
        self._entered = [(Phase.QUEUED, self._began_at)]
        self._span = tracing.begin(
            f"agent {agent}",
            parent=below(stage),
            began_at_ns=self._began_at,
            gen_ai__operation__name="invoke_agent",
            gen_ai__agent__name=agent,
        )

    def enter(self, phase: Phase) -> None:
        self._entered.append((phase, time.time_ns()))

    def finish(self, trace: AgentTrace) -> None:
        """End the span, and give it those of its phases."""
        self._span.set_attributes(_of_turn(trace))
        spent = _nanoseconds(trace.phases)
        begin = self._first_began_at(spent)
        for phase, duration in spent.items():
            if duration:
                self._add_phase(phase, begin, begin + duration)
            begin += duration
        self._span.end()

    def _first_began_at(self, spent: Mapping[Phase, int]) -> int:
        """Events come late and never early, so the one that came soonest after its moment tells."""
        ends = dict(zip(spent, accumulate(spent.values()), strict=True))
        bounds = [moment - (ends[phase] - spent[phase]) for phase, moment in self._entered[1:]]
        return max(self._began_at, min([*bounds, time.time_ns() - sum(spent.values())]))

    def cut(self, error: BaseException) -> None:
        ends = [moment for _, moment in self._entered[1:]]
        for (phase, begin), end in zip(self._entered, ends, strict=False):
            self._add_phase(phase, begin, end)
        self._add_phase(*self._entered[-1], time.time_ns(), error)
        note_end(self._span, error)
        self._span.end()

    def _add_phase(
        self, phase: Phase, begin: int, end: int, error: BaseException | None = None
    ) -> None:
        begin = max(begin, self._began_at)
        span = self._tracing.begin(phase.value, parent=below(self._span), began_at_ns=begin)
        if error is not None:
            note_end(span, error)
        span.end(max(begin, end))


def _nanoseconds(phases: PhaseDurations) -> dict[Phase, int]:
    spent_ms = {
        Phase.QUEUED: phases.queued_ms,
        Phase.PREFILL: phases.prefill_ms,
        Phase.THINKING: phases.thinking_ms,
        Phase.SPEAKING: phases.speaking_ms,
    }
    return {phase: round(NS_PER_MS * spent) for phase, spent in spent_ms.items()}


def _of_stage(stage: Stage) -> dict[str, Any]:
    """As keywords: see ``Tracing.begin``."""
    return {
        "latentmas__stage": stage.name,
        "latentmas__group": stage.group,
        "latentmas__agents": tuple(node.name for node in stage.nodes),
    }


def _of_made(made: StageMade) -> dict[str, Any]:
    return attributes_of(
        {
            "latentmas.replica": made.place.replica,
            "latentmas.bytes_in": made.num_bytes_read,
            "latentmas.bytes_out": made.num_bytes,
        }
    )


def _of_turn(trace: AgentTrace) -> dict[str, Any]:
    return attributes_of(
        {
            "latentmas.mode": trace.mode.value,
            "latentmas.latent_steps": trace.latent_steps,
            "latentmas.adapter": trace.adapter,
            "latentmas.adapter_digest": trace.adapter_digest,
            "gen_ai.usage.input_tokens": trace.prompt_tokens,
            "gen_ai.usage.output_tokens": trace.completion_tokens,
        }
    )


def _of_result(result: Result) -> dict[str, Any]:
    return {
        "latentmas.latent_steps": result.usage.latent_steps,
        "latentmas.bytes_out": result.transfer.num_bytes,
        "latentmas.failed_agents": result.failed_agents,
        "gen_ai.usage.input_tokens": result.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": result.usage.completion_tokens,
        "gen_ai.response.finish_reasons": (result.finish_reason,),
    }
