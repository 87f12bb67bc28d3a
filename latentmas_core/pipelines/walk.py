"""One run of one plan: a task per stage that waits for its parents, and what is done when one of
them fails.

A stage whose runner was lost runs again from its inputs. When the inputs are lost too, those who
made them run again first. Knows nothing of engines or deployments.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Generic, TypeVar

from latentmas_core.errors import DeadlineError, LatentMASError, LostError, MemoryLostError
from latentmas_core.events import (
    AgentFinished,
    AnswerDelta,
    Event,
    StageFinished,
    StageGivenUp,
    StageRetried,
    StageStarted,
)
from latentmas_core.pipelines.ownership import OwnedMemories
from latentmas_core.pipelines.plan import Plan, Stage
from latentmas_core.pipelines.retries import AnswerSoFar, RetryPolicy
from latentmas_core.pipelines.runner import AgentRunner, StageDone, StageInputs
from latentmas_core.pipelines.stage_log import StageLog
from latentmas_core.request import OnExpertFailure, ReasonRequest
from latentmas_core.result import AgentTrace, Result, Transfer, Usage

logger = logging.getLogger(__name__)

MemoryRef = TypeVar("MemoryRef")

MIN_TIMEOUT_S = 0.001


class Walk(Generic[MemoryRef]):
    """Run it once, read ``events`` meanwhile, then ask for the ``result``."""

    def __init__(
        self,
        runner: AgentRunner[MemoryRef],
        plan: Plan,
        request: ReasonRequest,
        retries: RetryPolicy,
        *,
        run_id: str,
    ) -> None:
        self._run_id = run_id
        self._runner = runner
        self._plan = plan
        self._request = request
        self._retries = retries
        self._began_at = time.perf_counter()
        self._owned: OwnedMemories[MemoryRef] = OwnedMemories(runner.release)
        self._stages = {stage.name: stage for stage in plan.stages}
        self._logs = {stage.name: StageLog(stage, self._began_at) for stage in plan.stages}
        self._has_ended = {stage.name: asyncio.Event() for stage in plan.stages}
        self._renewing = {stage.name: asyncio.Lock() for stage in plan.stages}
        self._done: dict[str, StageDone[MemoryRef]] = {}
        self._failures: dict[str, LatentMASError] = {}
        self._num_readers = Counter(parent for stage in plan.stages for parent in stage.parents)
        self._traces: dict[str, AgentTrace] = {}
        self._answer = AnswerSoFar()
        self.events: asyncio.Queue[Event | None] = asyncio.Queue()

    async def run(self) -> None:
        """Run all stages; None in ``events`` marks the end, good or bad."""
        timeout_s = self._request.timeout_s
        try:
            async with asyncio.timeout(timeout_s) as timeout, self._owned:
                await _all_of(self._run_stage(stage) for stage in self._plan.stages)
        except TimeoutError:
            if not timeout.expired():
                raise  # it comes from below and is none of ours
            raise DeadlineError(
                f"the answer was not there after {timeout_s:g} s (timeout_s). Allow more time, "
                "fewer latent steps or fewer tokens.",
                param="timeout_s",
            ) from None
        finally:
            self.events.put_nowait(None)

    def result(self) -> Result:
        """Of a run that ended well."""
        done_stages = [stage for stage in self._plan.stages if stage.name not in self._failures]
        nodes = [node.name for stage in done_stages for node in stage.nodes]
        agents = tuple(self._traces[node] for node in nodes)
        return Result(
            id=self._run_id,
            final_answer=agents[-1].text,
            pipeline=self._plan.pipeline,
            mode=self._request.mode,
            agents=agents,
            usage=Usage.of(agents),
            latency_ms=1000.0 * (time.perf_counter() - self._began_at),
            transfer=self._transfer(),
            stages=tuple(log.trace() for log in self._logs.values()),
            failed_agents=tuple(
                node.name for name in self._failures for node in self._stages[name].nodes
            ),
            finish_reason=self._done[self._plan.stages[-1].name].finish_reason,
        )

    def _transfer(self) -> Transfer:
        return Transfer(
            stages=len(self._plan.stages),
            hops=self._plan.num_hops,
            num_bytes=sum(log.num_bytes_out for log in self._logs.values()),
        )

    async def _run_stage(self, stage: Stage) -> None:
        for parent in stage.parents:
            await self._has_ended[parent].wait()
        try:
            await self._complete(stage)
        except LatentMASError as error:
            self._logs[stage.name].note_failure(error.message)
            if stage.is_speaking or self._on_failure is OnExpertFailure.FAIL:
                raise
            self._give_up(stage, error)
        self._has_ended[stage.name].set()
        await self._finish_reading(stage.parents)

    @property
    def _on_failure(self) -> OnExpertFailure:
        return self._request.on_expert_failure or self._plan.on_expert_failure

    def _give_up(self, stage: Stage, error: LatentMASError) -> None:
        logger.warning("stage %s is done without: %s", stage.name, error.message)
        # Its frames know this walk and the memories that were read: they would keep each other.
        self._failures[stage.name] = error.with_traceback(None)
        agents = tuple(node.name for node in stage.nodes)
        self.events.put_nowait(StageGivenUp(stage.name, agents, error.message))

    async def _complete(self, stage: Stage) -> None:
        """Run a stage to its end, within its time."""
        timeout_s = self._request.stage_timeout_s or self._plan.stage_timeout_s
        try:
            async with asyncio.timeout(timeout_s) as timeout:
                await self._try(stage)
        except TimeoutError:
            if not timeout.expired():
                raise  # it comes from below and is none of ours
            raise DeadlineError(
                f"stage {stage.name!r} did not end within {timeout_s:g} s (stage_timeout_s). "
                "Allow more time, fewer latent steps or fewer tokens.",
                param="stage_timeout_s",
            ) from None

    async def _try(self, stage: Stage) -> None:
        """One attempt after the other, until one succeeds or there have been enough."""
        log = self._logs[stage.name]
        while True:
            inputs = self._inputs_of(stage)
            read = {name: self._done[name] for name in self._living_parents(stage)}
            try:
                await self._attempt(stage, inputs)
                return
            except LostError as error:
                if log.attempts >= self._retries.max_attempts:
                    raise
                log.note_failure(error.message)
                logger.warning("stage %s is tried again: %s", stage.name, error.message)
                await asyncio.sleep(self._retries.delay_after(log.attempts))
                if isinstance(error, MemoryLostError):
                    await self._renew(read)
                self.events.put_nowait(StageRetried(stage.name, log.attempts + 1, error.message))

    async def _attempt(self, stage: Stage, inputs: StageInputs[MemoryRef]) -> None:
        log = self._logs[stage.name]
        log.begin()
        agents = tuple(node.name for node in stage.nodes)
        self.events.put_nowait(StageStarted(stage.name, stage.group, agents, log.attempts))
        if stage.is_speaking:
            self._answer.begin()
        try:
            done = await self._consume(stage, inputs)
        except asyncio.CancelledError:
            if _is_asked_to_stop():
                raise
            raise LostError(f"stage {stage.name!r} was cancelled. Send it again.") from None
        if stage.is_speaking:
            self._answer.end()
        known = self._done.get(stage.name)
        self._done[stage.name] = done
        log.note_done(done)
        self.events.put_nowait(StageFinished(stage.name, log.trace()))
        if known is not None:
            await self._owned.release(known.memory)

    async def _consume(self, stage: Stage, inputs: StageInputs[MemoryRef]) -> StageDone[MemoryRef]:
        run = self._runner.speak if stage.is_speaking else self._runner.think
        done: StageDone[MemoryRef] | None = None
        async with aclosing(run(stage, inputs, self._with_time_left(stage))) as items:
            async for item in items:
                if isinstance(item, StageDone):
                    self._owned.own(item.memory)
                    done = item
                else:
                    self._report(item)
        assert done is not None, f"stage {stage.name!r} ended without StageDone"
        return done

    def _with_time_left(self, stage: Stage) -> ReasonRequest:
        """The request as the runner sees it: its time is what is left of it."""
        now = time.perf_counter()
        began_at = self._logs[stage.name].started_at or now
        limits = (
            (self._request.timeout_s, self._began_at),
            (self._request.stage_timeout_s or self._plan.stage_timeout_s, began_at),
        )
        left_s = [max(limit - (now - start), MIN_TIMEOUT_S) for limit, start in limits if limit]
        return self._request.model_copy(update={"timeout_s": min(left_s, default=None)})

    def _living_parents(self, stage: Stage) -> list[str]:
        return [parent for parent in stage.parents if parent not in self._failures]

    def _inputs_of(self, stage: Stage) -> StageInputs[MemoryRef]:
        """Raises the error of a parent when none of them is left."""
        parents = self._living_parents(stage)
        if stage.parents and not parents:
            raise self._failures[stage.parents[0]]
        memories = (self._done[parent].memory for parent in parents)
        ancestors = [a for a in self._plan.ancestors_of(stage) if a.name not in self._failures]
        return StageInputs(
            memories=tuple(memory for memory in memories if memory is not None),
            transcript=tuple(said for other in ancestors for said in self._done[other.name].said),
        )

    async def _renew(self, lost: dict[str, StageDone[MemoryRef]]) -> None:
        """Run again whoever made these memories, unless another reader has seen to it already.

        Their own inputs were given back, or are lost with them, so all that lead to them run again.
        """
        await _all_of(self._renew_one(name, done) for name, done in lost.items())

    async def _renew_one(self, name: str, lost: StageDone[MemoryRef]) -> None:
        async with self._renewing[name]:
            if self._done[name] is lost:
                await self._run_again(self._stages[name])

    async def _run_again(self, stage: Stage) -> None:
        parents = self._living_parents(stage)
        self._num_readers.update(parents)  # from here on they are not given back
        try:
            await self._renew({parent: self._done[parent] for parent in parents})
            await self._try(stage)
        finally:
            await self._finish_reading(parents)

    def _report(self, event: Event) -> None:
        if isinstance(event, AgentFinished):
            self._traces[event.agent] = event.trace
        if isinstance(event, AnswerDelta):
            new = self._answer.add(event.text)
            tokens = self._answer.add_tokens(event.logprobs)
            if not new and not tokens:
                return
            event = AnswerDelta(new, tokens)
        self.events.put_nowait(event)

    async def _finish_reading(self, parents: Sequence[str]) -> None:
        for parent in parents:
            self._num_readers[parent] -= 1
            done = self._done.get(parent)
            if done is not None and self._num_readers[parent] == 0:
                self._done[parent] = replace(done, memory=None)
                await self._owned.release(done.memory)


async def _all_of(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all at the same time; the first error ends the others and is raised as it was."""
    first: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            for work in works:
                tasks.create_task(work)
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
    # Not within the handler, and not from a name that stays: a cycle of error and frame would keep
    # memories until the next collection of garbage.
    try:
        if first is not None:
            raise first
    finally:
        del first


def _is_asked_to_stop() -> bool:
    """False if a cancellation comes from below and would leave the waiting stages waiting."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
