"""Walks a plan: starts what is ready, passes memories on, gives every one of them back.

Knows nothing of engines or deployments; an ``AgentRunner`` runs the stages.
"""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Generic, TypeVar

from latentmas_core.errors import EngineError
from latentmas_core.events import AgentFinished, AnswerDone, Event
from latentmas_core.pipelines.ownership import OwnedMemories
from latentmas_core.pipelines.plan import Plan, Stage
from latentmas_core.pipelines.runner import AgentRunner, StageDone, StageInputs
from latentmas_core.request import Mode, ReasonRequest
from latentmas_core.result import AgentTrace, Result, Transfer, Usage

MemoryRef = TypeVar("MemoryRef")


class Executor(Generic[MemoryRef]):
    """Runs any number of plans at the same time; it holds nothing between them."""

    def __init__(self, runner: AgentRunner[MemoryRef]) -> None:
        self._runner = runner

    async def run(self, plan: Plan, request: ReasonRequest) -> AsyncGenerator[Event, None]:
        """What happens, as it happens, then ``AnswerDone``; mode ``single`` runs the speaker only.

        The first stage that fails cancels the others and its error is raised as it was. Closing the
        iteration cancels all stages. Either way every memory is given back first.
        """
        if request.mode is Mode.SINGLE:
            plan = plan.speaker_only()
        started_at = time.perf_counter()
        walk = _Walk(self._runner, plan, request)
        walking = asyncio.create_task(walk.run())
        try:
            while (event := await walk.events.get()) is not None:
                yield event
            await walking
        finally:
            walking.cancel()
            await asyncio.wait([walking])
            _note_outcome(walking)
        yield AnswerDone(walk.result(latency_ms=1000.0 * (time.perf_counter() - started_at)))


async def result_of(events: AsyncIterator[Event]) -> Result:
    """Iterate to the end and return the result."""
    result: Result | None = None
    async for event in events:
        if isinstance(event, AnswerDone):
            result = event.result
    assert result is not None, "a run ended without AnswerDone"
    return result


def _is_asked_to_stop() -> bool:
    """False if a cancellation comes from below and would leave the waiting stages waiting."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _note_outcome(task: asyncio.Task[None]) -> None:
    """An error that came while the run was being closed is nobody's; asyncio would log it."""
    if not task.cancelled():
        task.exception()


class _Walk(Generic[MemoryRef]):
    """One run of one plan: a task per stage that waits for its parents."""

    def __init__(self, runner: AgentRunner[MemoryRef], plan: Plan, request: ReasonRequest) -> None:
        self._runner = runner
        self._plan = plan
        self._request = request
        self._done: dict[str, StageDone[MemoryRef]] = {}
        self._is_done = {stage.name: asyncio.Event() for stage in plan.stages}
        self._num_readers = Counter(parent for stage in plan.stages for parent in stage.parents)
        self._traces: dict[str, AgentTrace] = {}
        self.events: asyncio.Queue[Event | None] = asyncio.Queue()

    async def run(self) -> None:
        """Run all stages; None in ``events`` marks the end, good or bad."""
        try:
            async with OwnedMemories(self._runner.release) as owned, asyncio.TaskGroup() as stages:
                for stage in self._plan.stages:
                    stages.create_task(self._run_stage(stage, owned))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            self.events.put_nowait(None)

    async def _run_stage(self, stage: Stage, owned: OwnedMemories[MemoryRef]) -> None:
        for parent in stage.parents:
            await self._is_done[parent].wait()
        try:
            await self._execute(stage, owned)
        except asyncio.CancelledError:
            if _is_asked_to_stop():
                raise
            raise EngineError(f"stage {stage.name!r} was cancelled. Send it again.") from None
        self._is_done[stage.name].set()
        for parent in stage.parents:
            await self._finish_reading(parent, owned)

    async def _execute(self, stage: Stage, owned: OwnedMemories[MemoryRef]) -> None:
        run = self._runner.speak if stage.is_speaking else self._runner.think
        async for item in run(stage, self._inputs_of(stage), self._request):
            if isinstance(item, StageDone):
                owned.own(item.memory)
                self._done[stage.name] = item
            else:
                self._report(item)
        assert stage.name in self._done, f"stage {stage.name!r} ended without StageDone"

    def _inputs_of(self, stage: Stage) -> StageInputs[MemoryRef]:
        memories = (self._done[parent].memory for parent in stage.parents)
        ancestors = self._plan.ancestors_of(stage)
        return StageInputs(
            memories=tuple(memory for memory in memories if memory is not None),
            transcript=tuple(said for other in ancestors for said in self._done[other.name].said),
        )

    def _report(self, event: Event) -> None:
        if isinstance(event, AgentFinished):
            self._traces[event.agent] = event.trace
        self.events.put_nowait(event)

    async def _finish_reading(self, parent: str, owned: OwnedMemories[MemoryRef]) -> None:
        self._num_readers[parent] -= 1
        if self._num_readers[parent] == 0:
            done = self._done[parent]
            self._done[parent] = replace(done, memory=None)
            await owned.release(done.memory)

    def result(self, *, latency_ms: float) -> Result:
        nodes = [node for stage in self._plan.stages for node in stage.nodes]
        agents = tuple(self._traces[node.name] for node in nodes)
        return Result(
            id=f"reason-{uuid.uuid4().hex}",
            final_answer=agents[-1].text,
            pipeline=self._plan.pipeline,
            mode=self._request.mode,
            agents=agents,
            usage=Usage.of(agents),
            latency_ms=latency_ms,
            transfer=self._transfer(),
            finish_reason=self._done[self._plan.stages[-1].name].finish_reason,
        )

    def _transfer(self) -> Transfer:
        return Transfer(
            stages=len(self._plan.stages),
            hops=self._plan.num_hops,
            num_bytes=sum(done.num_bytes for done in self._done.values()),
        )
