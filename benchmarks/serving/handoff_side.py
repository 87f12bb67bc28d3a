"""A replica that hands memories over as the replicas of a service do, with a stopwatch.

``AgentGroupServer`` does the work. Only its agents are left out: the memory that a stage hands over
lies ready in blocks, and a stage that reads one takes a turn of one token.
"""

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, cast

import numpy as np
import ray
import torch
from ray import serve

from benchmarks.serving.copies import copies_counted
from deployments.agent_group import AgentGroupServer
from deployments.callers import CallerWatch
from deployments.group_setup import GroupSetup
from deployments.messages import RemoteMemory, StageCall, StageMessage
from deployments.transport import WireSegments, fetch, from_wire, is_alive, this_place, to_wire
from latentmas_core.config import EngineConfig, SamplingParams
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.turn import Turn
from latentmas_core.errors import EngineError
from latentmas_core.latent.codec import PackedSegments
from latentmas_core.latent.memory import Memory, Placement
from latentmas_core.latent.segment import KVRows, Segment, SegmentTensors
from latentmas_core.pipelines.plan import Stage
from latentmas_core.pipelines.runner import StageDone
from latentmas_core.pipelines.stage_worker import Roster

NUM_LATENTS = 8


class Span(NamedTuple):
    """By ``time.perf_counter``, which all processes of a machine share on Linux."""

    started_s: float
    ended_s: float

    @property
    def duration_s(self) -> float:
        return self.ended_s - self.started_s


class Copied(NamedTuple):
    """Bytes that our code copied to hand over ``payload_bytes``.

    ``is_shared``: whether the array that Ray was given, or gave, lies where the tensor lies.
    """

    num_bytes: int
    payload_bytes: int
    is_shared: bool


class TimedEngine:
    """An engine that notes when it last packed and loaded, and keeps some memories for good."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.ready: dict[str, ResidentMemory] = {}
        self.spans: dict[str, Span] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def pack(
        self, memory: ResidentMemory, segments: Sequence[Segment], *, has_kv: bool = True
    ) -> PackedSegments:
        started_s = time.perf_counter()
        packed = await self._engine.pack(memory, segments, has_kv=has_kv)
        self.note("pack", started_s)
        return packed

    async def load(self, memory: Memory, tensors: Mapping[str, SegmentTensors]) -> ResidentMemory:
        started_s = time.perf_counter()
        loaded = await self._engine.load(memory, tensors)
        self.note("load", started_s)
        return loaded

    async def release(self, memory: ResidentMemory) -> None:
        if all(memory is not kept for kept in self.ready.values()):
            await self._engine.release(memory)

    async def read_twice(self, memory: ResidentMemory) -> None:
        """A turn of one token behind the memory, which is in blocks then; and the same once more.

        The second says what the turn itself costs, at the same time and on the same memory.
        """
        sampling = SamplingParams(max_tokens=1, ignore_eos=True)
        turn = Turn("judger", prompt_ids=(1,), memory=memory, sampling=sampling)
        for name in ("turn", "warm turn"):
            started_s = time.perf_counter()
            await self._engine.complete(turn)
            self.note(name, started_s)

    def note(self, name: str, started_s: float) -> None:
        self.spans[name] = Span(started_s, time.perf_counter())


class MemoryWorker:
    """In place of a ``StageWorker``: hands over what lies ready by the stage's name, or reads."""

    def __init__(self, engine: TimedEngine) -> None:
        self._engine = engine

    async def run(
        self, stage: Stage, memory: ResidentMemory | None, *_: object
    ) -> AsyncGenerator[StageDone[ResidentMemory], None]:
        if memory is None:
            yield StageDone(self._engine.ready[stage.name])
            return
        await self._engine.read_twice(memory)
        yield StageDone(None)


class HandoffServer(AgentGroupServer):
    """The replica of a group whose stages cost nothing but their hand-over."""

    def __init__(self, engine: TimedEngine, setup: GroupSetup) -> None:
        super().__init__(cast(Engine, engine), setup, this_place())
        self._worker = MemoryWorker(engine)  # type: ignore[assignment]


@serve.deployment
class HandoffGroup:
    """``sizes``: bytes of the memories that lie ready here, by name."""

    async def __init__(self, config: EngineConfig, sizes: Mapping[str, int]) -> None:  # type: ignore[misc]  # Serve awaits it
        plain = await asyncio.to_thread(Engine, config)
        self._plain = plain
        self._engine = TimedEngine(plain)
        self._server = HandoffServer(self._engine, GroupSetup(config, Roster({}, 0)))
        self._callers = CallerWatch(is_alive)
        await self._touch_pool()
        for name, num_bytes in sizes.items():
            self._engine.ready[name] = await self._make(self._num_rows_of(num_bytes))

    async def run_stage(self, call: StageCall) -> AsyncGenerator[StageMessage | WireSegments, None]:
        started_s = time.perf_counter()
        async with (
            self._callers.watched(call.caller),
            aclosing(self._server.run_stage(call)) as messages,
        ):
            async for message in messages:
                yield message
        self._engine.note("stage", started_s)

    async def spans(self) -> dict[str, Span]:
        """Of the last stage."""
        return self._engine.spans

    async def put_s(self, num_bytes: int) -> float:
        """Ray's own copy of so many bytes into the object store."""
        array = np.ones(num_bytes, dtype=np.uint8)  # pages of zeros would not be read from memory
        started_s = time.perf_counter()
        ref = ray.put(array)
        duration_s = time.perf_counter() - started_s
        del ref
        return duration_s

    async def digest(self, name: str) -> str:
        """Of the keys, values and latents of a memory that lies ready."""
        return await self._digest_of(self._engine.ready[name])

    async def digest_of_remote(self, remote: RemoteMemory) -> str:
        """The same of one that is fetched and loaded."""
        loaded = await self._plain.load(remote.memory, await fetch(remote.parcels))
        digest = await self._digest_of(loaded)
        await self._plain.release(loaded)
        return digest

    async def copied_by_packing(self, name: str) -> Copied:
        async with copies_counted(self._plain) as counter:
            packed = await self._pack(self._engine.ready[name])
            wire = to_wire(packed)
        is_shared = wire.data.ctypes.data == packed.buffer.data_ptr()
        return Copied(counter.num_bytes, packed.num_bytes, is_shared)

    async def copied_by_loading(self, remote: RemoteMemory) -> Copied:
        """Fetch, load, and the turn's attaching; the turn's own numbers are the same elsewhere."""
        wire: WireSegments = await remote.parcels[0].ref
        # Arrays are read-only where Ray hands out its own memory.
        is_shared = (
            not wire.data.flags.writeable
            and from_wire(wire).buffer.data_ptr() == wire.data.ctypes.data
        )
        async with copies_counted(self._plain) as counter:
            loaded = await self._plain.load(remote.memory, await fetch(remote.parcels))
        num_bytes = counter.num_bytes
        if loaded.block_table is None:
            raise EngineError("the pool has no room for the memory. Raise its size.")
        await self._plain.release(loaded)
        return Copied(num_bytes, remote.num_bytes, is_shared)

    async def give_by_value(self, name: str) -> tuple[Memory, dict[str, torch.Tensor]]:
        """The naive way: a tensor per layer, pickled into the answer."""
        memory = self._engine.ready[name]
        (content,) = await self._plain.export(memory, memory.memory.segments)
        assert content.kv is not None, "export gives keys and values"
        tensors = {"latents": content.latents}
        for layer, (keys, values) in enumerate(
            zip(content.kv.keys, content.kv.values, strict=True)
        ):
            # Clones: a pickled view would take the tensors of all layers with it.
            tensors |= {f"{layer}.keys": keys.clone(), f"{layer}.values": values.clone()}
        return memory.memory, tensors

    async def take_by_value(self, memory: Memory, tensors: dict[str, torch.Tensor]) -> None:
        """Into blocks, and the turns behind it."""
        (segment,) = memory.segments
        layers = range(self._plain.shape.num_layers)
        rows = KVRows(
            torch.stack([tensors[f"{layer}.keys"] for layer in layers]),
            torch.stack([tensors[f"{layer}.values"] for layer in layers]),
        )
        content = SegmentTensors(tensors["latents"], rows)
        loaded = await self._plain.load(memory, {segment.segment_id: content})
        await self._engine.read_twice(loaded)
        await self._plain.release(loaded)

    async def _pack(self, memory: ResidentMemory) -> PackedSegments:
        return await self._plain.pack(memory, memory.memory.segments)

    async def _digest_of(self, memory: ResidentMemory) -> str:
        (content,) = await self._plain.export(memory, memory.memory.segments)
        assert content.kv is not None, "export gives keys and values"
        sha = hashlib.sha256()
        for tensor in (content.latents, content.kv.keys, content.kv.values):
            sha.update(tensor.contiguous().view(torch.uint8).numpy())
        return sha.hexdigest()

    async def _touch_pool(self) -> None:
        """Blocks get their memory from the system when they are first written."""
        stats = await self._plain.stats()
        await self._plain.release(await self._make(stats.num_blocks * stats.block_size, zeros=True))

    async def _make(self, num_rows: int, *, zeros: bool = False) -> ResidentMemory:
        """A memory of random numbers, in blocks."""
        shape = self._plain.shape
        fill = torch.zeros if zeros else torch.randn
        size = (shape.num_layers, num_rows, shape.num_kv_heads, shape.head_dim)
        segment = Segment(
            "planner",
            self._plain.fingerprint,
            first_position=0,
            token_ids=tuple(index % shape.vocab_size for index in range(num_rows - NUM_LATENTS)),
            num_latents=NUM_LATENTS,
        )
        content = SegmentTensors(
            fill(NUM_LATENTS, shape.hidden_size), KVRows(fill(size), fill(size))
        )
        memory = Memory((Placement(segment),))
        return await self._plain.load(memory, {segment.segment_id: content})

    def _num_rows_of(self, num_bytes: int) -> int:
        shape = self._plain.shape
        row_bytes = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * 4  # float32
        return max(NUM_LATENTS + 1, math.ceil(num_bytes / row_bytes))

    async def __del__(self) -> None:
        self._server.close()
