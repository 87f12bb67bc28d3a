"""LocalReasoning: a question in, events out, over one engine in this process."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple

from latentmas_core.agents.config import AgentConfig
from latentmas_core.context.reading import Reading
from latentmas_core.events import Event
from latentmas_core.pipelines.adapter_choice import adapters_of, check_choices
from latentmas_core.pipelines.executor import Executor
from latentmas_core.pipelines.local_runner import LocalAgentRunner
from latentmas_core.pipelines.plan import Plan, plan
from latentmas_core.pipelines.spec import PipelineSpec
from latentmas_core.pipelines.stage_worker import StageWorker
from latentmas_core.pipelines.turn_engine import TurnEngine
from latentmas_core.request import ReasonRequest
from latentmas_core.routing.router import Route, Router

LOCAL_GROUP = "local"


class _Prepared(NamedTuple):
    """``digests``: what the names of adapters stand for, whatever is loaded later."""

    plan: Plan
    route: Route
    digests: Mapping[str, str]


@dataclass(frozen=True)
class LocalReasoning:
    """With one pipeline, or with that of ``pipelines`` which the question chooses (``spec`` None).

    ``read`` says how the engine's model reads; it is asked when that is needed first.
    """

    engine: TurnEngine
    worker: StageWorker
    agents: Mapping[str, AgentConfig]
    pipelines: Mapping[str, PipelineSpec]
    spec: PipelineSpec | None
    read: Callable[[], Reading]

    def stream(self, request: ReasonRequest) -> AsyncGenerator[Event, None]:
        """The events of a run. What cannot be meant raises at once."""
        return self._events(self._prepare(request))

    def num_agents(self, request: ReasonRequest) -> int:
        chosen = self._prepare(request).plan
        return sum(len(stage.nodes) for stage in chosen.stages)

    async def reading(self) -> Reading:
        return self.read()

    async def _events(self, prepared: _Prepared) -> AsyncGenerator[Event, None]:
        """A run. Adapters that are unloaded before it ends go then."""
        chosen, route, digests = prepared
        executor = Executor(LocalAgentRunner(self.worker, self.engine, digests))
        async with (
            self.engine.holding(digests.values()),
            aclosing(executor.run(chosen, route.request, routing=route.decision)) as events,
        ):
            async for event in events:
                yield event

    def _prepare(self, request: ReasonRequest) -> _Prepared:
        route = self._route(request)
        check_choices(route.spec, route.request)
        groups = dict.fromkeys(self.agents, LOCAL_GROUP)
        chosen = plan(route.spec, groups).in_mode(request.mode)
        names = {
            name
            for stage in chosen.stages
            for used in adapters_of(stage, self.agents, route.request).values()
            for name in used
        }
        # Unknown ones are refused before anything runs.
        digests = {name: self.engine.adapter(name).digest for name in sorted(names)}
        return _Prepared(chosen, route, digests)

    def _route(self, request: ReasonRequest) -> Route:
        if self.spec is None:
            return Router(self.pipelines, self.agents).route(request)
        self.spec.check_agents(self.agents)
        return Route(self.spec, request)
