"""A thread that steps and an asyncio face in front of it.

The thread is the only one that touches the ``Stepper``, which owns the model, the blocks and every
sequence; others post commands to its inbox and receive events.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch

from latentmas_core.config import EngineConfig
from latentmas_core.engine.block_manager import prefix_keys
from latentmas_core.engine.detokenizer import Detokenizer
from latentmas_core.engine.inbox import Inbox
from latentmas_core.engine.model_loader import (
    LoadedModel,
    load_model,
    resolve_devices,
    resolve_dtype,
)
from latentmas_core.engine.pool_size import limit_memory
from latentmas_core.engine.quiet_threads import QuietThreads
from latentmas_core.engine.reprefill import prefill_memory
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.sequence import EventSink
from latentmas_core.engine.sequence import Sequence as EngineSequence
from latentmas_core.engine.stats import EngineStats
from latentmas_core.engine.stepper import Stepper
from latentmas_core.engine.turn import Turn, TurnDone, TurnEvent
from latentmas_core.errors import AdapterError, EngineError, LatentMASError, LostError
from latentmas_core.latent.codec import KVLayout, PackedSegments, pack
from latentmas_core.latent.int8_codec import Int8Segments, to_int8
from latentmas_core.latent.memory import Memory, check_same_model, merge
from latentmas_core.latent.merge_rule import MergeRule
from latentmas_core.latent.segment import Segment, SegmentTensors
from latentmas_core.latent.wire_buffers import WireBuffers
from latentmas_core.lora.base_model import BaseModel
from latentmas_core.lora.cached_adapter import AdapterSpec, AdapterState
from latentmas_core.lora.holds import AdapterHolds

T = TypeVar("T")

logger = logging.getLogger(__name__)

# A device that is broken fails every step from then on; a bad request fails its own.
MAX_FAILURES_IN_A_ROW = 3


class Engine:
    """Runs turns of agents, many at a time, over one model.

    ``run`` and the coroutines may be awaited from any event loop. Use it as a context manager, or
    call ``close``.
    """

    def __init__(self, config: EngineConfig, loaded: LoadedModel | None = None) -> None:
        self.config = config
        self._inbox = Inbox()
        self._is_closed = False
        # All torch work is done on this one thread, from loading on: a second thread would have an
        # OpenMP team of its own, and teams that outnumber the cores slow every step of each other.
        is_set_up: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._live, args=(loaded, is_set_up), name="latentmas-engine", daemon=True
        )
        self._thread.start()
        is_set_up.result()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def max_positions(self) -> int:
        return self.shape.max_positions

    @property
    def adapter_base(self) -> BaseModel:
        """What adapters must fit."""
        return self.stepper.runner.base

    @property
    def max_lora_rank(self) -> int:
        return self.config.lora.max_lora_rank

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive() and not self._is_closed

    @property
    def is_healthy(self) -> bool:
        """Running, and its steps do not fail one after the other."""
        return self.is_running and self.stepper.num_failures_in_a_row < MAX_FAILURES_IN_A_ROW

    def close(self) -> None:
        """End the thread; turns that are under way fail with EngineError."""
        if not self._is_closed:
            self._inbox.post(self._stop)
        self._thread.join()

    async def run(self, turn: Turn) -> AsyncGenerator[TurnEvent, None]:
        """The events of one turn; the last is ``TurnDone``.

        Closing or cancelling the iteration ends the turn and frees what it holds. Raises
        ConfigError, ContextLengthError or SegmentError for a turn that cannot run here, EngineError
        if the engine is closed, overloaded or its step failed.
        """
        self.limits.check(turn)
        events: asyncio.Queue[TurnEvent | LatentMASError] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        sequence = self._make_sequence(
            turn,
            lambda event: _deliver(loop, events, event),  # called by the engine's thread
        )
        self._inbox.post(lambda: self.stepper.add(sequence))
        is_delivered = False
        try:
            while not is_delivered:
                event = await events.get()
                if isinstance(event, LatentMASError):
                    raise event
                is_delivered = isinstance(event, TurnDone)
                yield event
        finally:
            if not is_delivered:
                self._inbox.post(lambda: self.stepper.abort(sequence))

    async def complete(self, turn: Turn) -> TurnDone:
        """Run a turn to its end without looking at what happens on the way."""
        last: TurnEvent | None = None
        async for event in self.run(turn):
            last = event
        assert isinstance(last, TurnDone), f"a turn ended with {last}"
        return last

    async def merge(
        self, memories: Sequence[ResidentMemory], rule: MergeRule = MergeRule.REUSED
    ) -> ResidentMemory:
        """A new memory that joins several; the given ones stay the caller's."""
        target = merge([memory.memory for memory in memories], rule)
        return await self.assemble(target, memories)

    async def keep_latents(self, memory: ResidentMemory) -> ResidentMemory:
        """A new memory with the latent rows alone; the given one stays the caller's."""
        return await self.assemble(memory.memory.latents_only(), [memory])

    async def assemble(self, target: Memory, sources: Sequence[ResidentMemory]) -> ResidentMemory:
        """A new memory whose segments are copied from the sources, moved to where they belong."""
        return await self._inbox.call(
            lambda: self.stepper.memories.assemble(target, sources),
            undo=self.stepper.memories.release,
        )

    async def prefill_memory(
        self, memory: Memory, latents: Mapping[str, torch.Tensor]
    ) -> ResidentMemory:
        """A new memory, computed again from tokens and latents (hand-off ``embeddings``)."""
        check_same_model(memory.segments, self.fingerprint)
        return await prefill_memory(self, memory, latents)

    async def load_adapter(
        self, name: str, folder: Path, *, is_pinned: bool = False
    ) -> AdapterSpec:
        """Make the adapter in ``folder`` known by ``name``; it is brought to the device when used.

        ``is_pinned``: at once, and for good. Raises AdapterError when it is missing, broken, made
        for another base, too large, or when the name is in use for another.
        """
        if self.config.lora.max_loaded_adapters == 0:
            raise AdapterError(
                f"adapter {name!r} cannot be loaded: max_loaded_adapters is 0. Raise it.",
                param="name",
            )
        loader = self.stepper.loader
        reading = self._reading.submit(loader.read, name, folder, is_pinned=is_pinned)
        spec, packed = await asyncio.wrap_future(reading)
        return await self._inbox.call(lambda: self.stepper.register(spec, packed))

    async def run_beside(self, function: Callable[[], T]) -> T:
        """Run something that computes with torch beside the steps, which it does not slow down.

        One after the other; what is loaded meanwhile does not wait for it.
        """
        return await asyncio.wrap_future(self._beside.submit(function))

    async def unload_adapter(self, name: str) -> None:
        """Forget a name; turns that have its adapter finish first. NotFoundError."""
        await self._inbox.call(lambda: self.stepper.adapters.unregister(name))

    @asynccontextmanager
    async def holding(self, digests: Collection[str]) -> AsyncIterator[None]:
        """Adapters that are unloaded meanwhile can be used until it ends.

        Does not wait for the step under way. One that is not there any more is not held: whoever
        runs with it is told.
        """
        if not digests:
            yield
            return
        hold = self._holds.prepare(digests)
        self._inbox.post(hold.begin)
        try:
            yield
        finally:
            self._inbox.post(hold.end)

    def adapter(self, name: str) -> AdapterSpec:
        """A loaded adapter by its name. NotFoundError: never the base model in its place."""
        return self.stepper.adapters.find(name)

    async def adapters(self) -> list[tuple[AdapterSpec, AdapterState]]:
        """All that are known, and where each is."""
        return await self._inbox.call(self.stepper.adapters.listing)

    async def export(
        self, memory: ResidentMemory, segments: Sequence[Segment]
    ) -> list[SegmentTensors]:
        """Copies of what some segments of a memory hold, on the engine's device."""
        return await self._inbox.call(lambda: self.stepper.memories.export(memory, segments))

    async def pack(
        self, memory: ResidentMemory, segments: Sequence[Segment], *, has_kv: bool = True
    ) -> PackedSegments | Int8Segments:
        """Some segments of a memory in one buffer, ready for the wire.

        In 8 bits if ``transfer_dtype`` says so; SegmentError for rows that these cannot hold.
        """
        packed = await self._inbox.call(lambda: self._pack(memory, segments, has_kv=has_kv))
        if self.config.transfer_dtype == "model" or not has_kv:
            return packed
        return await self.run_beside(lambda: to_int8(packed))

    async def load(self, memory: Memory, tensors: Mapping[str, SegmentTensors]) -> ResidentMemory:
        """A memory from the content of its segments; takes blocks when it is first read."""
        check_same_model(memory.segments, self.fingerprint)
        return await self._inbox.call(
            lambda: self.stepper.memories.load(memory, tensors), undo=self.stepper.memories.release
        )

    async def release(self, memory: ResidentMemory) -> None:
        """Give a memory back. Does not wait, so it is safe while being cancelled."""
        self._inbox.post(lambda: self.stepper.memories.release(memory))

    async def check_responsive(self) -> None:
        """Raise EngineError if the thread is stuck: it answers nothing for ``stall_timeout_s``."""
        timeout_s = self.config.stall_timeout_s
        try:
            await asyncio.wait_for(self._inbox.call(lambda: None), timeout_s)
        except TimeoutError:
            raise EngineError(
                f"the engine has been at one step for {timeout_s:g} s (stall_timeout_s): it is "
                "stuck, or its device is. Start it again, or allow steps more time."
            ) from None

    async def stats(self) -> EngineStats:
        """What the engine holds and has done, between two steps."""
        return await self._inbox.call(self.stepper.stats)

    async def check_integrity(self) -> None:
        """Raise AssertionError if any count of blocks or references does not add up."""
        await self._inbox.call(lambda: self.stepper.check_integrity(self._holds.mixes))

    # From here to _pack: the engine's thread.

    def _live(self, loaded: LoadedModel | None, is_set_up: "Future[None]") -> None:
        try:
            self._set_up(loaded or _load(self.config))
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever wants this engine
            is_set_up.set_exception(error)
            return
        is_set_up.set_result(None)
        end = LostError("the engine was closed.")
        # Whatever happens, nobody waits for an answer that never comes.
        with closing(self._inbox):
            try:
                self._step_until_closed()
            except Exception:
                logger.exception("the engine ends: its counts cannot be trusted any more")
                end = LostError("the engine failed and is closed. Start it again.")
            self._is_closed = True
            self._reading.close(waits=False)
            self._beside.close(waits=False)
            self.stepper.close(end)

    def _set_up(self, loaded: LoadedModel) -> None:
        if self.config.num_threads is not None:
            torch.set_num_threads(self.config.num_threads)
        self.model_name = loaded.name
        self.dtype = loaded.model.dtype
        self.fingerprint = loaded.fingerprint
        self.shape = loaded.shape
        self.tokenizer = loaded.tokenizer
        self._reading = QuietThreads(1, name="reading")
        self._beside = QuietThreads(1, name="beside")
        self.stepper = Stepper(self.config, loaded, post=self._inbox.post)
        self.limits = self.stepper.limits
        self._holds = AdapterHolds(self.stepper.adapters)
        self._wire_buffers = WireBuffers()

    def _step_until_closed(self) -> None:
        timeout_s: float | None = None
        while True:
            self._inbox.run_commands(timeout_s=timeout_s)
            if self._is_closed:
                return
            can_step = self.stepper.has_work and self.stepper.step()
            timeout_s = 0.0 if can_step else self._idle_s()

    def _idle_s(self) -> float | None:
        """How long there is nothing to compute unless something is posted; None: for ever."""
        end = self.stepper.earliest_end
        if end is None:
            return None
        return min(max(end - time.monotonic(), 0.0), threading.TIMEOUT_MAX)

    def _stop(self) -> None:
        self._is_closed = True

    def _pack(
        self, memory: ResidentMemory, segments: Sequence[Segment], *, has_kv: bool
    ) -> PackedSegments:
        shape = self.shape
        return pack(
            segments,
            lambda segment, content: self.stepper.memories.copy_out(memory, segment, content),
            KVLayout(shape.num_layers, shape.num_kv_heads, shape.head_dim, shape.hidden_size),
            dtype=self.dtype,
            has_kv=has_kv,
            take=self._wire_buffers.take,
        )

    def _make_sequence(self, turn: Turn, sink: EventSink) -> EngineSequence:
        has_keys = self.config.has_prefix_cache and turn.memory is None and turn.recall is None
        block_size = self.stepper.blocks.block_size
        root = f"{self.fingerprint}/{turn.mix.key}"
        keys = prefix_keys(root, turn.prompt_ids, block_size) if has_keys else []
        stop = turn.sampling.stop if turn.sampling else ()
        return EngineSequence(
            turn,
            sink=sink,
            detokenizer=Detokenizer(self.tokenizer.backend_tokenizer, stop),
            prefix_keys=keys,
        )


def _deliver(
    loop: asyncio.AbstractEventLoop,
    events: "asyncio.Queue[TurnEvent | LatentMASError]",
    event: TurnEvent | LatentMASError,
) -> None:
    loop.call_soon_threadsafe(events.put_nowait, event)


def _load(config: EngineConfig) -> LoadedModel:
    devices = resolve_devices(config.device, config.num_devices)
    limit_memory(devices, config.device_memory_share)
    return load_model(
        config.model_name,
        device=devices[0],
        further_devices=devices[1:],
        dtype=resolve_dtype(config.dtype, devices[0]),
        quantization=config.quantization,
    )
