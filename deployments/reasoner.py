"""Reasoner: questions in, events out, over the groups of one application. Knows no HTTP."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from deployments.args import AppArgs
from deployments.runner import ServeAgentRunner
from deployments.transport import GroupHandle, ask_all_replicas
from latentmas_core.errors import NotFoundError
from latentmas_core.events import Event
from latentmas_core.pipelines.executor import Executor, result_of
from latentmas_core.pipelines.plan import Plan, plan
from latentmas_core.request import ReasonRequest
from latentmas_core.result import Result

READY_TIMEOUT_S = 2.0


class Reasoner:
    """Plans every offered pipeline once and runs requests over the groups' handles."""

    def __init__(self, args: AppArgs, handles: Mapping[str, GroupHandle]) -> None:
        self._handles = handles
        self._executor = Executor(ServeAgentRunner(handles))
        group_of = args.group_of
        self._plans = {name: plan(spec, group_of) for name, spec in args.offered_pipelines.items()}

    async def stream(self, request: ReasonRequest) -> AsyncGenerator[Event, None]:
        """Events of one run. Raises NotFoundError before the first if there is no such pipeline."""
        async with aclosing(self._executor.run(self.plan_of(request), request)) as events:
            async for event in events:
                yield event

    async def reason(self, request: ReasonRequest) -> Result:
        async with aclosing(self.stream(request)) as events:
            return await result_of(events)

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
