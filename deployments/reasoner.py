"""Reasoner: questions in, events out, over the groups of one application. Knows no HTTP."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from deployments.access import current_caller
from deployments.adapters import AdapterDirectory
from deployments.args import AppArgs
from deployments.budget import RunAccount, TransferBudget
from deployments.context import tools_of
from deployments.logs import begin_run, note
from deployments.messages import LoadedAdapter
from deployments.metrics import NullRecorder, Recorder, RunMetrics
from deployments.runner import ServeAgentRunner
from deployments.spans import run_spans
from deployments.tracing import NO_TRACING, Tracing
from deployments.transport import GroupHandle, ask_a_replica, ask_all_replicas
from latentmas_core.context.answerer import Answerer
from latentmas_core.context.conversations.conversations import Conversations
from latentmas_core.context.documents.chunking import token_spans_of_json
from latentmas_core.context.reading import Reading
from latentmas_core.context.request import AskRequest
from latentmas_core.errors import DeadlineError, LatentMASError, NotFoundError
from latentmas_core.events import AnswerDone, Event
from latentmas_core.pipelines.adapter_choice import adapters_of, check_choices
from latentmas_core.pipelines.assignment import exchanges_memory
from latentmas_core.pipelines.executor import Executor, new_run_id, result_of
from latentmas_core.pipelines.plan import Plan, Stage, plan
from latentmas_core.pipelines.retries import RetryPolicy
from latentmas_core.pipelines.stage_worker import Roster
from latentmas_core.request import Handoff, Mode, ReasonRequest
from latentmas_core.result import Result
from latentmas_core.routing.domains import AUTO
from latentmas_core.routing.router import Route, Router

READY_TIMEOUT_S = 2.0


class Reasoner:
    """Plans every offered pipeline once and runs requests over the groups' handles."""

    def __init__(
        self,
        args: AppArgs,
        handles: Mapping[str, GroupHandle],
        budget: TransferBudget,
        recorder: Recorder | None = None,
        tracing: Tracing = NO_TRACING,
        conversations: Conversations | None = None,
    ) -> None:
        self._handles = handles
        self._tracing = tracing
        self._budget = budget
        self._metrics = RunMetrics(recorder or NullRecorder(), lambda: budget.num_bytes)
        self._retries = RetryPolicy(args.max_stage_attempts)
        self._max_timeout_s = args.request_timeout_s
        self._agents = args.known_agents
        self._declared = {g.name: Roster(args.agents_of(g), args.latent_steps) for g in args.groups}
        self.pipelines = args.offered_pipelines
        self._group_of = args.group_of
        self.plans = {name: plan(spec, self._group_of) for name, spec in self.pipelines.items()}
        hosted = tuple(agent for agent in self._agents if agent in self._group_of)
        self._router = Router(self.pipelines, hosted)
        self._answerer = Answerer(args.context, tools_of(args.context), conversations)
        self._reading: Reading | None = None
        self._scale_to_zero = frozenset(g.name for g in args.groups if g.min_replicas == 0)
        self.adapters = AdapterDirectory(handles)

    async def check(self, request: ReasonRequest) -> None:
        """Raise NotFoundError if its pipeline, an agent, an adapter or a tool does not exist here,
        ConfigError if its caller may not ask for so much."""
        if isinstance(request, AskRequest):
            self._answerer.check(request)
        await self._prepare(self._route(request))

    def stream(self, request: ReasonRequest) -> AsyncGenerator[Event, None]:
        """Events of one run. Raises what ``check`` raises before the first.

        A run that will hand memory over first waits for room in the object store. What an
        AskRequest brings along is seen to: documents are searched, tools are run.
        """
        return self._begin(request, is_streamed=True)

    async def reason(self, request: ReasonRequest) -> Result:
        """The same, without what happens on the way."""
        async with aclosing(self._begin(request, is_streamed=False)) as events:
            return await result_of(events)

    def num_agents(self, request: ReasonRequest) -> int:
        """How many agents it will run."""
        route = self._route(request)
        return sum(len(stage.nodes) for stage in self._plan_of(route).stages)

    async def reading(self) -> Reading:
        """How the model reads; a replica is asked once."""
        if self._reading is None:
            told = await ask_a_replica(next(iter(self._handles.values())), "reading")
            spans = await asyncio.to_thread(token_spans_of_json, told.tokenizer_json)
            self._reading = Reading(spans, told.max_positions)
        return self._reading

    def _begin(self, request: ReasonRequest, *, is_streamed: bool) -> AsyncGenerator[Event, None]:
        if not isinstance(request, AskRequest):
            return self._measured(request, self._run(request, is_streamed=is_streamed))
        # One time for all rounds.
        timeout_s = min(request.timeout_s or self._max_timeout_s, self._max_timeout_s)
        request = request.model_copy(update={"timeout_s": timeout_s})
        runs = _Runs(self, is_streamed)
        events = self._answerer.run(runs, request, tenant=current_caller().tenant)
        return self._measured(request, events)

    async def _measured(
        self, request: ReasonRequest, events: AsyncGenerator[Event, None]
    ) -> AsyncGenerator[Event, None]:
        """One request for the metrics and the log, of however many rounds."""
        route = self._route(request)  # no metrics of pipelines that do not exist
        with self._metrics.run(route.request) as metrics:
            async with aclosing(events):
                async for event in events:
                    metrics.note(event)
                    if isinstance(event, AnswerDone):
                        note(**event.result.usage.model_dump())
                    yield event

    async def _run(
        self, request: ReasonRequest, *, is_streamed: bool
    ) -> AsyncGenerator[Event, None]:
        route = self._route(request)
        request = route.request
        timeout_s = min(request.timeout_s or self._max_timeout_s, self._max_timeout_s)
        ends_at = time.monotonic() + timeout_s
        run_id = new_run_id()
        async with AsyncExitStack() as stack:
            spans = stack.enter_context(run_spans(self._tracing, request, run_id))
            async with _within(timeout_s):
                chosen, adapters = await self._prepare(route)
                account = await stack.enter_async_context(self._account_for(chosen, request))
            request = request.model_copy(update={"timeout_s": ends_at - time.monotonic()})
            runner = ServeAgentRunner(
                self._handles,
                account,
                adapters,
                is_streamed=is_streamed,
                origin=begin_run(run_id),
                spans=spans,
            )
            executor = Executor(runner, retries=self._retries)
            note(run_id=run_id, pipeline=request.pipeline, mode=request.mode.value)
            events = executor.run(chosen, request, run_id=run_id, routing=route.decision)
            async with aclosing(events):
                async for event in events:
                    spans.note(event)
                    yield event

    def _account_for(
        self, chosen: Plan, request: ReasonRequest
    ) -> AbstractAsyncContextManager[RunAccount]:
        if len(chosen.stages) == 1 or not exchanges_memory(request):
            return nullcontext(RunAccount())
        return self._budget.run(max_wait_s=request.max_wait_s)

    async def _prepare(self, route: Route) -> tuple[Plan, dict[str, tuple[LoadedAdapter, ...]]]:
        """What is to run, and the adapters that each stage of it needs, by its name."""
        spec, request, _ = route
        current_caller().check(request)
        check_choices(spec, request)
        chosen = self._plan_of(route)
        own = {stage.name: await self._adapters_of(stage, request) for stage in chosen.stages}
        return chosen, {
            stage.name: _unique(
                loaded for read in _computed_by(chosen, stage, request) for loaded in own[read.name]
            )
            for stage in chosen.stages
        }

    def _plan_of(self, route: Route) -> Plan:
        spec = route.spec
        is_offered = self.pipelines.get(spec.name) is spec
        chosen = self.plans[spec.name] if is_offered else plan(spec, self._group_of)
        return chosen.in_mode(route.request.mode)

    async def _adapters_of(self, stage: Stage, request: ReasonRequest) -> tuple[LoadedAdapter, ...]:
        """Those that the request names must be loaded. What an agent uses by itself its group knows
        best: the operator may have changed that since."""
        by_agent = adapters_of(stage, self._agents, request)
        asked = [n for agent, names in by_agent.items() if agent in request.adapters for n in names]
        own = [n for names in by_agent.values() for n in names if n not in asked]
        return (*await self.adapters.require(asked), *await self.adapters.find(own))

    def _route(self, request: ReasonRequest) -> Route:
        """The pipeline that the request names, or its question chooses; NotFoundError names those
        that are offered."""
        if request.pipeline == AUTO:
            return self._router.route(request)
        spec = self.pipelines.get(request.pipeline)
        if spec is None:
            raise NotFoundError(
                f"pipeline {request.pipeline!r} is not offered here; offered are "
                f"{', '.join(sorted((AUTO, *self.pipelines)))}. Declare it under pipelines in the "
                "config.",
                param="pipeline",
            )
        return Route(spec, request)

    async def stats(self) -> dict[str, list[dict[str, Any]]]:
        """What each replica of each group that answers holds and has done."""
        answers = await asyncio.gather(
            *(ask_all_replicas(handle, "stats") for handle in self._handles.values())
        )
        return {
            group: [answer for answer in replicas if not isinstance(answer, LatentMASError)]
            for group, replicas in zip(self._handles, answers, strict=True)
        }

    async def rosters(self) -> dict[str, Roster]:
        """The agents of each group as a replica of it has them or, where none answers, as they
        were declared: the operator may have changed them since (``user_config``)."""
        answers = await asyncio.gather(
            *(ask_all_replicas(handle, "roster") for handle in self._handles.values())
        )
        return {
            group: next((one for one in replicas if isinstance(one, Roster)), self._declared[group])
            for group, replicas in zip(self._handles, answers, strict=True)
        }

    def transfer(self) -> dict[str, int]:
        """What lies in the object store for the runs of this ingress."""
        budget = self._budget
        return {
            "num_bytes": budget.num_bytes,
            "num_parcels": budget.num_parcels,
            "num_runs": budget.num_runs,
            "max_bytes": budget.max_bytes,
        }

    async def groups_not_ready(self) -> list[str]:
        """Groups of which no replica answers; those that may be at zero are not asked.

        A question would start a replica of theirs.
        """
        names = [name for name in self._handles if name not in self._scale_to_zero]
        is_ready = await asyncio.gather(*(self._is_ready(self._handles[name]) for name in names))
        return [name for name, ready in zip(names, is_ready, strict=True) if not ready]

    async def _is_ready(self, handle: GroupHandle) -> bool:
        try:
            await asyncio.wait_for(handle.check_health.remote(), READY_TIMEOUT_S)
        except (TimeoutError, RayError, RayServeException):
            return False
        return True


@dataclass(frozen=True)
class _Runs:
    """Runs of a reasoner as the Answerer wants them: nothing but reasoning."""

    reasoner: Reasoner
    is_streamed: bool

    def stream(self, request: ReasonRequest) -> AsyncGenerator[Event, None]:
        return self.reasoner._run(request, is_streamed=self.is_streamed)

    def num_agents(self, request: ReasonRequest) -> int:
        return self.reasoner.num_agents(request)

    async def reading(self) -> Reading:
        return await self.reasoner.reading()


@asynccontextmanager
async def _within(timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s) as timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise
        raise DeadlineError(
            f"the request had not begun after {timeout_s:g} s (timeout_s): there is no room for "
            "its memory yet. Retry later, or allow more time.",
            param="timeout_s",
        ) from None


def _computed_by(chosen: Plan, stage: Stage, request: ReasonRequest) -> tuple[Stage, ...]:
    """Stages whose rows a stage computes: its own and, where embeddings are handed over, those of
    all before it, each with the adapter that made it."""
    if request.mode is Mode.LATENT and request.handoff is Handoff.EMBEDDINGS:
        return (*chosen.ancestors_of(stage), stage)
    return (stage,)


def _unique(adapters: Iterable[LoadedAdapter]) -> tuple[LoadedAdapter, ...]:
    return tuple({loaded.info.name: loaded for loaded in adapters}.values())
