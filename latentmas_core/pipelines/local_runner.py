"""LocalAgentRunner: runs stages on an engine in this process; memories are its handles."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.pipelines.ownership import OwnedMemories
from latentmas_core.pipelines.plan import Stage
from latentmas_core.pipelines.runner import StageInputs
from latentmas_core.pipelines.stage_worker import NO_DIGESTS, StageItem, StageWorker
from latentmas_core.pipelines.turn_engine import TurnEngine
from latentmas_core.request import ReasonRequest


class LocalAgentRunner:
    """An ``AgentRunner`` over ``ResidentMemory``. Nothing is copied and no byte crosses.

    ``digests``: what names of adapters stand for, as ``StageWorker.run`` takes them.
    """

    def __init__(
        self, worker: StageWorker, engine: TurnEngine, digests: Mapping[str, str] = NO_DIGESTS
    ) -> None:
        self._worker = worker
        self._engine = engine
        self._digests = digests

    def think(
        self, stage: Stage, inputs: StageInputs[ResidentMemory], request: ReasonRequest
    ) -> AsyncGenerator[StageItem, None]:
        return self._run(stage, inputs, request)

    def speak(
        self, stage: Stage, inputs: StageInputs[ResidentMemory], request: ReasonRequest
    ) -> AsyncGenerator[StageItem, None]:
        return self._run(stage, inputs, request)

    async def release(self, memory: ResidentMemory) -> None:
        await self._engine.release(memory)

    async def _run(
        self, stage: Stage, inputs: StageInputs[ResidentMemory], request: ReasonRequest
    ) -> AsyncGenerator[StageItem, None]:
        async with OwnedMemories(self._engine.release) as owned:
            memory = await self._joined(stage, inputs, request, owned)
            items = self._worker.run(stage, memory, inputs.transcript, request, self._digests)
            async with aclosing(items):
                async for item in items:
                    yield item

    async def _joined(
        self,
        stage: Stage,
        inputs: StageInputs[ResidentMemory],
        request: ReasonRequest,
        owned: OwnedMemories[ResidentMemory],
    ) -> ResidentMemory | None:
        """One memory for the stage to read; what had to be made for that is ``owned``."""
        if len(inputs.memories) <= 1:
            return inputs.memories[0] if inputs.memories else None
        merged = await self._engine.merge(inputs.memories, request.merge or stage.merge)
        owned.own(merged)
        return merged
