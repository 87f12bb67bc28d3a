"""AgentGroup: the replicas of one group. Each holds an engine and hosts the group's agents.

Fetches the memory a stage reads, runs the stage, and returns what it made, so that the caller owns
it. Knows nothing of HTTP, pipelines as a whole, or other groups.
"""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ray import serve

from cluster.autoscaling import KV_CAPACITY_TOKENS, KV_TOKENS, NUM_WAITING
from cluster.routing import ADAPTERS, FREE_BLOCKS
from deployments.adapter_host import AdapterHost
from deployments.callers import CallerWatch
from deployments.group_setup import GroupSetup
from deployments.live import read_live_config
from deployments.logs import log_through_serve
from deployments.messages import (
    NOWHERE,
    AdapterFailed,
    AdapterListing,
    AdapterOrder,
    LoadedAdapter,
    ModelReading,
    Place,
    RemoteMemory,
    StageCall,
    StageFailed,
    StageMade,
    StageMessage,
)
from deployments.metrics import (
    EngineMetrics,
    NullRecorder,
    RayRecorder,
    Recorder,
    report_regularly,
)
from deployments.spans import StageSpans, stage_spans
from deployments.stage_log import logged_stage
from deployments.tracing import NO_TRACING, Tracing, open_tracing
from deployments.transport import WireSegments, fetch, is_alive, this_place, to_wire
from latentmas_core.config import EngineConfig
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.errors import EngineError, LatentMASError
from latentmas_core.events import AgentFinished
from latentmas_core.latent.codec import PackedSegments
from latentmas_core.latent.int8_codec import Int8Segments
from latentmas_core.latent.memory import Memory
from latentmas_core.lora.cached_adapter import AdapterState
from latentmas_core.lora.mix import AdapterMix
from latentmas_core.pipelines.adapter_choice import names_in
from latentmas_core.pipelines.ownership import OwnedMemories
from latentmas_core.pipelines.runner import StageDone
from latentmas_core.pipelines.stage_worker import Roster, StageWorker
from latentmas_core.request import Handoff

if TYPE_CHECKING:
    from latentmas_core.engine.engine import Engine

logger = logging.getLogger(__name__)


class AgentGroupServer:
    """What a replica does, without Serve around it; the engine is handed in."""

    def __init__(
        self,
        engine: "Engine",
        setup: GroupSetup,
        place: Place = NOWHERE,
        recorder: Recorder | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._engine = engine
        self._tracing = tracing
        self._setup = setup
        self._place = place
        self._config_error: str | None = None
        self._num_failed_health_checks = 0
        self.adapters = AdapterHost(engine, setup.adapters, resident=setup.resident_adapters)
        self._worker = StageWorker(engine, setup.roster)
        self._metrics = EngineMetrics(recorder or NullRecorder())

    async def start(self, user_config: Mapping[str, Any] | None = None) -> None:
        """Load the adapters of the config; the first error ends the start."""
        await self.adapters.start()
        await self._apply(user_config or {})

    async def reconfigure(self, user_config: Mapping[str, Any] | None) -> None:
        """Exchange agents, latent steps and adapters; stages under way keep theirs.

        A config that is wrong changes nothing: the replica goes on as it is, and its stats and its
        log say why. Were it to fail here, Serve would replace it, requests and all.
        """
        try:
            await self._apply(user_config or {})
            self._config_error = None
        except LatentMASError as error:
            self._config_error = error.message
            logger.error("user_config is refused, the last one stays: %s", error.message)

    async def run_stage(self, call: StageCall) -> AsyncGenerator[StageMessage | WireSegments, None]:
        """Events, ``StageMade``, then the packed segments; or ``StageFailed``."""
        try:
            with stage_spans(self._tracing, call, self._place) as spans:
                async with aclosing(self._messages(call, spans)) as messages:
                    async for message in messages:
                        yield message
        except LatentMASError as error:
            yield StageFailed(error)

    async def _messages(
        self, call: StageCall, spans: StageSpans
    ) -> AsyncGenerator[StageMessage | WireSegments, None]:
        async with OwnedMemories(self._engine.release) as owned:
            await self.adapters.ensure(call.all_adapters)
            with spans.part("fetch memory", call.memory):
                memory = await self._load(call.memory)
            owned.own(memory)
            hands_latents = call.request.handoff is Handoff.EMBEDDINGS
            adapters = await self.adapters.to_recall() if hands_latents else {}
            items = self._worker.run(
                call.stage, memory, call.transcript, call.request, call.digests
            )
            async with aclosing(items):
                async for item in items:
                    spans.note(item)
                    if not isinstance(item, StageDone):
                        if call.is_streamed or isinstance(item, AgentFinished):
                            yield item
                        continue
                    owned.own(item.memory)
                    with spans.part("pack memory", item.memory):
                        packed = await self._pack(item.memory, call)
                    made = self._made(item, packed, call, adapters)
                    spans.note_made(made)
                    yield made
                    if packed is not None:
                        yield to_wire(packed)

    @property
    def roster(self) -> Roster:
        """The agents as they are now."""
        return self._worker.roster

    def reading(self) -> ModelReading:
        """How the model reads, for those who measure texts without having it."""
        tokenizer_json = self._engine.tokenizer.backend_tokenizer.to_str()
        return ModelReading(tokenizer_json, self._engine.max_positions)

    async def stats(self) -> dict[str, Any]:
        """What the engine holds and has done."""
        return asdict(await self._engine.stats()) | {
            "replica": self._place.replica,
            "config_error": self._config_error,
            "num_failed_health_checks_total": self._num_failed_health_checks,
        }

    async def report_metrics(self) -> None:
        """Record what the engine holds and has done since the last report."""
        self._metrics.report(await self._engine.stats())

    async def scaling_stats(self) -> dict[str, float]:
        """What ``cluster.autoscaling`` needs to know.

        A turn that waits is taken to need as many tokens as one that runs. What adapters take is
        not counted: the idle ones give way.
        """
        stats = await self._engine.stats()
        num_needed: float = stats.num_used_blocks - stats.adapters.num_blocks
        if stats.num_running:
            num_needed *= 1 + stats.num_waiting / stats.num_running
        return {
            KV_TOKENS: num_needed * stats.block_size,
            KV_CAPACITY_TOKENS: stats.num_blocks * stats.block_size,
            NUM_WAITING: stats.num_waiting,
        }

    async def routing_stats(self) -> dict[str, Any]:
        """What ``cluster.routing`` needs to know."""
        stats = await self._engine.stats()
        adapters = await self._engine.adapters()
        return {
            ADAPTERS: [spec.name for spec, state in adapters if state is AdapterState.READY],
            FREE_BLOCKS: stats.num_blocks - stats.num_used_blocks,
        }

    async def check_health(self) -> None:
        """Raise if the engine is gone, stuck, or fails at every step: Serve then replaces the
        replica."""
        try:
            if not self._engine.is_healthy:
                raise EngineError("the engine has ended, or its steps fail one after the other.")
            await self._engine.check_responsive()
        except LatentMASError:
            self._num_failed_health_checks += 1
            raise

    def close(self) -> None:
        self._engine.close()

    async def _apply(self, user_config: Mapping[str, Any]) -> None:
        config = read_live_config(user_config)
        limit = self._engine.config.max_latent_steps
        roster = config.applied_to(self._setup.roster, max_latent_steps=limit)
        async with self.adapters.configured(config.adapters.load):
            for agent in config.agents:
                self.adapters.check_loaded(agent, names_in(roster.agents[agent].adapter))
            self._worker.roster = roster

    async def _load(self, remote: RemoteMemory | None) -> ResidentMemory | None:
        if remote is None:
            return None
        return await self._engine.load(remote.memory, await fetch(remote.parcels))

    async def _pack(
        self, memory: ResidentMemory | None, call: StageCall
    ) -> PackedSegments | Int8Segments | None:
        """The segments that this stage added to what it read."""
        if memory is None:
            return None
        known = call.memory.memory.segment_ids if call.memory else ()
        segments = [s for s in memory.memory.segments if s.segment_id not in known]
        has_kv = call.request.handoff is Handoff.KV
        return await self._engine.pack(memory, segments, has_kv=has_kv)

    def _made(
        self,
        done: StageDone[ResidentMemory],
        packed: PackedSegments | Int8Segments | None,
        call: StageCall,
        adapters: Mapping[str, LoadedAdapter],
    ) -> StageMade:
        """``adapters``: by digest, those that were here when the stage began."""
        memory = done.memory.memory if done.memory else None
        digests = _digests_of(memory) if memory else ()
        return StageMade(
            memory=memory,
            new_segment_ids=tuple(s.segment_id for s in packed.segments) if packed else (),
            num_bytes=packed.num_bytes if packed else 0,
            said=done.said,
            finish_reason=done.finish_reason,
            num_bytes_read=call.memory.num_bytes if call.memory else 0,
            place=self._place,
            adapters=tuple(adapters[digest] for digest in digests if digest in adapters),
        )


def _digests_of(memory: Memory) -> tuple[str, ...]:
    """The adapters that its rows were computed with."""
    mixes = (AdapterMix.from_key(segment.adapter) for segment in memory.segments)
    return tuple({digest: None for mix in mixes for digest in mix.digests})


def _open_engine(config: EngineConfig) -> "Engine":
    # Imported here, since those who only deploy replicas do without: it takes seconds.
    from latentmas_core.engine.engine import Engine

    return Engine(config)


@serve.deployment
class AgentGroup:
    """The Serve face of ``AgentGroupServer``."""

    async def __init__(self, setup: GroupSetup) -> None:  # type: ignore[misc]  # Serve awaits it
        log_through_serve()
        engine = await asyncio.to_thread(_open_engine, setup.engine)
        place = this_place()
        self._tracing = open_tracing(os.environ, instance=place.replica)
        self._server = AgentGroupServer(engine, setup, place, RayRecorder(), self._tracing)
        self._reporting = asyncio.create_task(report_regularly(self._server.report_metrics))
        self._callers = CallerWatch(is_alive)
        self._has_started = False

    async def reconfigure(self, user_config: Mapping[str, Any] | None) -> None:
        """Serve calls this once behind the constructor, then whenever the config changes.

        A replica that starts with a wrong config fails: it would serve what nobody asked for.
        """
        if self._has_started:
            await self._server.reconfigure(user_config)
            return
        await self._server.start(user_config)
        self._has_started = True

    async def run_stage(self, call: StageCall) -> AsyncGenerator[StageMessage | WireSegments, None]:
        async with (
            self._callers.watched(call.caller),
            aclosing(logged_stage(call, self._server.run_stage(call))) as messages,
        ):
            async for message in messages:
                yield message

    async def stats(self) -> dict[str, Any]:
        return await self._server.stats()

    async def roster(self) -> Roster:
        return self._server.roster

    async def reading(self) -> ModelReading:
        return self._server.reading()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return await self._server.scaling_stats()

    async def record_routing_stats(self) -> dict[str, Any]:
        return await self._server.routing_stats()

    async def load_adapter(self, order: AdapterOrder) -> LoadedAdapter | AdapterFailed:
        return await self._server.adapters.load(order)

    async def take_back_adapter(self, order: AdapterOrder) -> None:
        await self._server.adapters.take_back(order)

    async def unload_adapter(self, name: str) -> None:
        await self._server.adapters.unload(name)

    async def forget_adapters(self, names: list[str]) -> None:
        await self._server.adapters.forget(names)

    async def adapters(self) -> AdapterListing:
        return await self._server.adapters.listing()

    async def check_health(self) -> None:
        await self._server.check_health()

    async def __del__(self) -> None:
        self._reporting.cancel()
        self._server.close()
        await self._tracing.close()
