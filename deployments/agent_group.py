"""AgentGroup: the replicas of one group. Each holds an engine and hosts the group's agents.

Fetches the memory a stage reads, runs the stage, and returns what it made, so that the caller owns
it. Knows nothing of HTTP, pipelines as a whole, or other groups.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from ray import serve

from deployments.adapter_host import AdapterHost
from deployments.adapters import AdapterFailed, LoadedAdapter
from deployments.args import AdaptersConfig
from deployments.messages import RemoteMemory, StageCall, StageFailed, StageMade, StageMessage
from deployments.transport import WireSegments, fetch, to_wire
from latentmas_core.agents.config import AgentConfig
from latentmas_core.config import EngineConfig
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.errors import LatentMASError
from latentmas_core.latent.codec import PackedSegments
from latentmas_core.lora.library import AdapterSource
from latentmas_core.pipelines.ownership import OwnedMemories
from latentmas_core.pipelines.runner import StageDone
from latentmas_core.pipelines.stage_worker import StageWorker
from latentmas_core.request import Handoff

logger = logging.getLogger(__name__)


class AgentGroupServer:
    """What a replica does, without Serve around it; the engine is handed in."""

    def __init__(
        self,
        engine: Engine,
        agents: Mapping[str, AgentConfig],
        *,
        latent_steps: int,
        adapters: AdaptersConfig | None = None,
    ) -> None:
        self._engine = engine
        self.adapters = AdapterHost(engine, adapters or AdaptersConfig())
        self._worker = StageWorker(engine, agents, default_latent_steps=latent_steps)

    async def run_stage(self, call: StageCall) -> AsyncGenerator[StageMessage | WireSegments, None]:
        """Events, ``StageMade``, then the packed segments; or ``StageFailed``."""
        try:
            async with OwnedMemories(self._engine.release) as owned:
                await self.adapters.ensure(call.adapters)
                memory = await self._load(call.memory)
                owned.own(memory)
                items = self._worker.run(call.stage, memory, call.transcript, call.request)
                async with aclosing(items):
                    async for item in items:
                        if not isinstance(item, StageDone):
                            yield item
                            continue
                        owned.own(item.memory)
                        packed = await self._pack(item.memory, call)
                        yield _made(item, packed)
                        if packed is not None:
                            yield to_wire(packed)
        except LatentMASError as error:
            yield StageFailed(error)

    async def stats(self) -> dict[str, Any]:
        """What the engine holds and has done."""
        return asdict(await self._engine.stats())

    def check_health(self) -> None:
        """Raise if the engine is gone or fails at every step: Serve then replaces the replica."""
        if not self._engine.is_healthy:
            raise RuntimeError("the engine has ended, or its steps fail one after the other")

    def close(self) -> None:
        self._engine.close()

    async def _load(self, remote: RemoteMemory | None) -> ResidentMemory | None:
        if remote is None:
            return None
        return await self._engine.load(remote.memory, await fetch(remote.parcels))

    async def _pack(self, memory: ResidentMemory | None, call: StageCall) -> PackedSegments | None:
        """The segments that this stage added to what it read."""
        if memory is None:
            return None
        known = call.memory.memory.segment_ids if call.memory else ()
        segments = [s for s in memory.memory.segments if s.segment_id not in known]
        has_kv = call.request.handoff is Handoff.KV
        return await self._engine.pack(memory, segments, has_kv=has_kv)


def _made(done: StageDone[ResidentMemory], packed: PackedSegments | None) -> StageMade:
    return StageMade(
        memory=done.memory.memory if done.memory else None,
        new_segment_ids=tuple(s.segment_id for s in packed.segments) if packed else (),
        num_bytes=packed.num_bytes if packed else 0,
        said=done.said,
        finish_reason=done.finish_reason,
    )


@serve.deployment
class AgentGroup:
    """The Serve face of ``AgentGroupServer``."""

    async def __init__(  # type: ignore[misc]  # Serve awaits constructors
        self,
        engine: EngineConfig,
        agents: Mapping[str, AgentConfig],
        latent_steps: int,
        adapters: AdaptersConfig,
    ) -> None:
        self._server = AgentGroupServer(
            await asyncio.to_thread(Engine, engine),
            agents,
            latent_steps=latent_steps,
            adapters=adapters,
        )
        await self._server.adapters.start()

    async def run_stage(self, call: StageCall) -> AsyncGenerator[StageMessage | WireSegments, None]:
        async with aclosing(self._server.run_stage(call)) as messages:
            async for message in messages:
                yield message

    async def stats(self) -> dict[str, Any]:
        return await self._server.stats()

    async def load_adapter(self, source: AdapterSource) -> LoadedAdapter | AdapterFailed:
        return await self._server.adapters.load(source)

    async def unload_adapter(self, name: str) -> str | AdapterFailed:
        return await self._server.adapters.unload(name)

    async def adapters(self) -> list[LoadedAdapter]:
        return await self._server.adapters.loaded()

    def check_health(self) -> None:
        self._server.check_health()

    async def __del__(self) -> None:
        self._server.close()
