"""Agents on one engine that hand on as if each sat in a replica of its own.

What an agent adds is packed, in 8 bits if the engine's ``transfer_dtype`` says so, unpacked and
loaded again before the next one reads it. For measuring what that does to answers: its time is
not that of a network.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from latentmas_core import LatentMASSystem
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.latent.codec import unpack
from latentmas_core.latent.int8_codec import Int8Segments, from_int8
from latentmas_core.latent.segment import SegmentTensors
from latentmas_core.pipelines.adapter_choice import check_choices
from latentmas_core.pipelines.choice import find_pipeline
from latentmas_core.pipelines.executor import Executor, result_of
from latentmas_core.pipelines.local_runner import LocalAgentRunner
from latentmas_core.pipelines.ownership import OwnedMemories
from latentmas_core.pipelines.plan import Plan, Stage, plan
from latentmas_core.pipelines.runner import StageDone, StageInputs
from latentmas_core.pipelines.stage_worker import Roster, StageItem, StageWorker
from latentmas_core.request import ReasonRequest
from latentmas_core.result import Result
from latentmas_core.routing.domains import AUTO
from latentmas_core.routing.router import Route, Router
from latentmas_core.system import DEFAULT_LATENT_STEPS
from latentmas_core.validation import validated


class AgentsApart:
    """Answers as ``system`` does, whose agents and ``engine`` it uses; both stay the caller's."""

    def __init__(self, system: LatentMASSystem, engine: Engine) -> None:
        self._system = system
        self._engine = engine
        self._worker = StageWorker(engine, Roster(system.agents, DEFAULT_LATENT_STEPS))

    async def arun(self, question: str, **options: Any) -> Result:
        """``options`` as ``LatentMASSystem.arun`` takes them, without documents and tools."""
        chosen, request = self._planned(validated(ReasonRequest, {"question": question, **options}))
        inner = LocalAgentRunner(self._worker, self._engine)
        async with aclosing(
            Executor(MovingRunner(inner, self._engine)).run(chosen, request)
        ) as events:
            return await result_of(events)

    def _planned(self, request: ReasonRequest) -> tuple[Plan, ReasonRequest]:
        """Every agent in a group of its own, so that none of them is fused with another."""
        agents, known = self._system.agents, self._system.pipelines
        route = (
            Router(known, agents).route(request)
            if request.pipeline == AUTO
            else Route(find_pipeline(request.pipeline, known, agents), request)
        )
        route.spec.check_agents(agents)
        check_choices(route.spec, route.request)
        return plan(route.spec, {agent: agent for agent in agents}), route.request


class MovingRunner:
    """An ``AgentRunner`` for one run: ``inner``'s, with every memory moved once.

    As between replicas, a segment is packed by whoever made it and unpacked from that one buffer by
    all who read it, so nothing is rounded twice.
    """

    def __init__(self, inner: LocalAgentRunner, engine: Engine) -> None:
        self._inner = inner
        self._engine = engine
        self._contents: dict[str, SegmentTensors] = {}

    async def think(
        self, stage: Stage, inputs: StageInputs[ResidentMemory], request: ReasonRequest
    ) -> AsyncGenerator[StageItem, None]:
        async with (
            OwnedMemories(self._engine.release) as owned,
            aclosing(self._inner.think(stage, inputs, request)) as items,
        ):
            async for item in items:
                if isinstance(item, StageDone) and item.memory is not None:
                    owned.own(item.memory)
                    moved, num_bytes = await self._move(item.memory)
                    owned.own(moved)
                    await owned.release(item.memory)
                    yield replace(item, memory=owned.hand_on(moved), num_bytes=num_bytes)
                else:
                    yield item

    def speak(
        self, stage: Stage, inputs: StageInputs[ResidentMemory], request: ReasonRequest
    ) -> AsyncGenerator[StageItem, None]:
        return self._inner.speak(stage, inputs, request)

    async def release(self, memory: ResidentMemory) -> None:
        await self._inner.release(memory)

    async def _move(self, memory: ResidentMemory) -> tuple[ResidentMemory, int]:
        """The same memory out of what a wire would bring, and the bytes of what is new in it."""
        segments = memory.memory.segments
        new = [segment for segment in segments if segment.segment_id not in self._contents]
        packed = await self._engine.pack(memory, new)
        if isinstance(packed, Int8Segments):
            self._contents |= await self._engine.run_beside(lambda: from_int8(packed))
        else:
            self._contents |= unpack(packed)
        contents = {segment.segment_id: self._contents[segment.segment_id] for segment in segments}
        return await self._engine.load(memory.memory, contents), packed.num_bytes
