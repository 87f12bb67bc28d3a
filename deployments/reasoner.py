"""Reasoner: questions in, events out, over the groups of one application. Knows no HTTP."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from deployments.adapters import AdapterDirectory
from deployments.args import AppArgs
from deployments.budget import TransferBudget
from deployments.runner import ServeAgentRunner
from deployments.transport import GroupHandle, ask_all_replicas
from latentmas_core.errors import NotFoundError
from latentmas_core.events import Event
from latentmas_core.lora.choice import adapters_of
from latentmas_core.lora.library import AdapterSource
from latentmas_core.pipelines.executor import Executor, result_of
from latentmas_core.pipelines.plan import Plan, plan
from latentmas_core.pipelines.retries import RetryPolicy
from latentmas_core.request import Mode, ReasonRequest
from latentmas_core.result import Result

READY_TIMEOUT_S = 2.0


class Reasoner:
    """Plans every offered pipeline once and runs requests over the groups' handles."""

    def __init__(
        self, args: AppArgs, handles: Mapping[str, GroupHandle], budget: TransferBudget
    ) -> None:
        self._handles = handles
        self._budget = budget
        self._retries = RetryPolicy(args.max_stage_attempts)
        self._max_timeout_s = args.request_timeout_s
        self._agents = args.known_agents
        self._pipelines = args.offered_pipelines
        self._plans = {name: plan(spec, args.group_of) for name, spec in self._pipelines.items()}
        self._scale_to_zero = frozenset(g.name for g in args.groups if g.min_replicas == 0)
        self.adapters = AdapterDirectory(handles, self._scale_to_zero)

    async def check(self, request: ReasonRequest) -> None:
        """Raise NotFoundError if its pipeline, an agent or an adapter does not exist here."""
        await self._prepare(request)

    async def stream(self, request: ReasonRequest) -> AsyncGenerator[Event, None]:
        """Events of one run. Raises what ``check`` raises before the first.

        A run that will hand memory over first waits for room in the object store.
        """
        chosen, adapters = await self._prepare(request)
        timeout_s = min(request.timeout_s or self._max_timeout_s, self._max_timeout_s)
        request = request.model_copy(update={"timeout_s": timeout_s})
        if len(chosen.stages) > 1 and request.mode is Mode.LATENT:
            await self._budget.wait_for_room(timeout_s=request.max_wait_s or timeout_s)
        runner = ServeAgentRunner(self._handles, self._budget, adapters)
        executor = Executor(runner, retries=self._retries)
        async with aclosing(executor.run(chosen, request)) as events:
            async for event in events:
                yield event

    async def reason(self, request: ReasonRequest) -> Result:
        async with aclosing(self.stream(request)) as events:
            return await result_of(events)

    async def _prepare(self, request: ReasonRequest) -> tuple[Plan, tuple[AdapterSource, ...]]:
        """The plan, and where the adapters come from that its agents use.

        Those that the request names must be loaded. What an agent uses by itself its group knows
        best: the operator may have changed that since.
        """
        chosen = self.plan_of(request)
        by_agent = adapters_of(self._pipelines[request.pipeline], self._agents, request)
        asked = [name for agent in request.adapters for name in by_agent[agent]]
        own = [name for agent in by_agent.keys() - request.adapters for name in by_agent[agent]]
        return chosen, (*await self.adapters.require(asked), *await self.adapters.find(own))

    def plan_of(self, request: ReasonRequest) -> Plan:
        """The plan of the request's pipeline; NotFoundError names those that are offered."""
        found = self._plans.get(request.pipeline)
        if found is None:
            raise NotFoundError(
                f"pipeline {request.pipeline!r} is not offered here; offered are "
                f"{', '.join(sorted(self._plans))}. Declare it under pipelines in the config.",
                param="pipeline",
            )
        return found

    async def stats(self) -> dict[str, list[dict[str, Any]]]:
        """What each replica of each group holds and has done."""
        answers = await asyncio.gather(
            *(
                ask_all_replicas(handle, "stats", can_be_none=group in self._scale_to_zero)
                for group, handle in self._handles.items()
            )
        )
        return dict(zip(self._handles, answers, strict=True))

    def transfer(self) -> dict[str, int]:
        """What lies in the object store for the runs of this ingress."""
        budget = self._budget
        return {
            "num_bytes": budget.num_bytes,
            "num_parcels": budget.num_parcels,
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
