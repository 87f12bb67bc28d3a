"""Reasoner: questions in, events out, over the groups of one application. Knows no HTTP."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from deployments.adapters import AdapterDirectory
from deployments.args import AppArgs
from deployments.runner import ServeAgentRunner
from deployments.transport import GroupHandle, ask_all_replicas
from latentmas_core.errors import NotFoundError
from latentmas_core.events import Event
from latentmas_core.lora.choice import adapters_of
from latentmas_core.lora.library import AdapterSource
from latentmas_core.pipelines.executor import Executor, result_of
from latentmas_core.pipelines.plan import Plan, plan
from latentmas_core.request import ReasonRequest
from latentmas_core.result import Result

READY_TIMEOUT_S = 2.0


class Reasoner:
    """Plans every offered pipeline once and runs requests over the groups' handles."""

    def __init__(self, args: AppArgs, handles: Mapping[str, GroupHandle]) -> None:
        self._handles = handles
        self._agents = args.known_agents
        self._pipelines = args.offered_pipelines
        self._plans = {name: plan(spec, args.group_of) for name, spec in self._pipelines.items()}
        self.adapters = AdapterDirectory(handles)

    async def check(self, request: ReasonRequest) -> None:
        """Raise NotFoundError if its pipeline, an agent or an adapter does not exist here."""
        await self._prepare(request)

    async def stream(self, request: ReasonRequest) -> AsyncGenerator[Event, None]:
        """Events of one run. Raises what ``check`` raises before the first."""
        chosen, adapters = await self._prepare(request)
        executor = Executor(ServeAgentRunner(self._handles, adapters))
        async with aclosing(executor.run(chosen, request)) as events:
            async for event in events:
                yield event

    async def reason(self, request: ReasonRequest) -> Result:
        async with aclosing(self.stream(request)) as events:
            return await result_of(events)

    async def _prepare(self, request: ReasonRequest) -> tuple[Plan, tuple[AdapterSource, ...]]:
        chosen = self.plan_of(request)
        by_agent = adapters_of(self._pipelines[request.pipeline], self._agents, request)
        names = [name for names in by_agent.values() for name in names]
        return chosen, await self.adapters.require(names) if names else ()

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
            *(ask_all_replicas(handle, "stats") for handle in self._handles.values())
        )
        return dict(zip(self._handles, answers, strict=True))

    async def groups_not_ready(self) -> list[str]:
        """Groups of which no replica answers."""
        checks = [self._is_ready(handle) for handle in self._handles.values()]
        is_ready = await asyncio.gather(*checks)
        return [name for name, ready in zip(self._handles, is_ready, strict=True) if not ready]

    async def _is_ready(self, handle: GroupHandle) -> bool:
        try:
            await asyncio.wait_for(handle.check_health.remote(), READY_TIMEOUT_S)
        except (TimeoutError, RayError, RayServeException):
            return False
        return True
