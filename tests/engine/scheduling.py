"""A scheduler without a model: what a step computes is only counted."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import cast

import torch

from latentmas_core.engine.block_manager import BlockManager
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.scheduler import Scheduler
from latentmas_core.engine.sequence import NextRow, Sequence
from latentmas_core.latent.memory import Memory
from latentmas_core.lora.arena import Arena, Berth
from latentmas_core.lora.cache import AdapterCache
from latentmas_core.lora.cached_adapter import AdapterSpec, CachedAdapter, Readiness
from latentmas_core.lora.mix import AdapterMix, AdapterUse
from latentmas_core.lora.packed import AdapterLayout, PackedAdapter
from latentmas_core.lora.terms import AdapterTerms
from tests.engine.factories import BLOCK_SIZE, create_sequence
from tests.latent.factories import create_segment

LATENT = cast(torch.Tensor, object())


class FakeMemories:
    """Memories that are only counted: readers get blocks of their own, idle ones give way."""

    def __init__(self, blocks: BlockManager) -> None:
        self.blocks = blocks
        self.idle_block_ids: list[int] = []
        self.pinned: list[ResidentMemory] = []

    def pin(self, memory: ResidentMemory | None) -> None:
        if memory is not None:
            self.pinned.append(memory)

    def unpin(self, memory: ResidentMemory | None) -> None:
        if memory is not None:
            self.pinned.remove(memory)

    def num_blocks_to_attach(self, memory: ResidentMemory | None) -> int:
        return self.blocks.num_blocks_for(memory.num_rows) if memory else 0

    def attach(self, sequence: Sequence) -> None:
        num_blocks = self.num_blocks_to_attach(sequence.turn.memory)
        sequence.block_table = self.blocks.allocate(num_blocks)

    def detach(self, sequence: Sequence, *, keeps_tail: bool = False) -> None:
        assert sequence.block_table == [], "blocks are freed before the memory is given back"

    def make_room(self, num_blocks: int, *, spared: ResidentMemory | None = None) -> bool:
        while not self.blocks.can_allocate(num_blocks) and self.idle_block_ids:
            self.blocks.free([self.idle_block_ids.pop()])
        return self.blocks.can_allocate(num_blocks)


class NoAdapters:
    """A cache that holds none: every sequence runs on the base model."""

    num_idle_blocks = 0
    num_loading = 0

    def hold(self, mix: AdapterMix) -> None:
        assert mix.is_base

    def drop(self, mix: AdapterMix) -> None: ...

    def keep(self, mix: AdapterMix) -> None: ...

    def request(self, mix: AdapterMix, *, is_first: bool) -> Readiness:
        return Readiness.READY

    def ready(self) -> set[str]:
        return set()

    def acquire(self, mix: AdapterMix) -> list[Berth]:
        return []

    def release(self, mix: AdapterMix) -> None: ...

    def running(self, *, besides: AdapterMix) -> list[str]:
        return []

    def is_on_host(self, mix: AdapterMix) -> bool:
        return True

    def evict_one(self) -> bool:
        return False

    def is_full(self) -> bool:
        return False


class FakeArena:
    """Adapters take no blocks: only the places are counted."""

    max_blocks = 10**6

    def __init__(self) -> None:
        self._starts = count()

    def num_blocks_for(self, layout: AdapterLayout) -> int:
        return 0

    def reserve(self, layout: AdapterLayout) -> Berth:
        return Berth(next(self._starts), 1, (), cast(AdapterTerms, None))

    def free(self, berth: Berth) -> None: ...


class NextStepLoader:
    """What a step starts to load is there when the next one begins."""

    def __init__(self) -> None:
        self._ends: list[Callable[[], None]] = []

    def start(self, adapter: CachedAdapter, on_end: Callable[[PackedAdapter], None]) -> None:
        self._ends.append(lambda: on_end(cast(PackedAdapter, adapter.packed)))

    def end_all(self) -> None:
        ends, self._ends = self._ends, []
        for end in ends:
            end()


def create_scheduler(
    *,
    num_blocks: int = 100,
    max_num_seqs: int = 10,
    max_num_batched_tokens: int = 50,
    num_places: int = 0,
    **settings: int,
) -> Scheduler:
    """With ``num_places`` it knows the adapters "a" to "z"."""
    blocks = BlockManager(num_blocks, BLOCK_SIZE)
    return Scheduler(
        blocks,
        FakeMemories(blocks),
        create_cache(num_places) if num_places else NoAdapters(),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        **settings,
    )


def create_cache(num_places: int) -> AdapterCache:
    cache = AdapterCache(
        cast(Arena, FakeArena()),
        NextStepLoader(),
        max_loaded=num_places,
        max_host=99,
        make_room=lambda num_blocks: True,
        on_failure=lambda digest, error: None,
    )
    for name in "abcdefghijklmnopqrstuvwxyz":
        register(cache, name)
    return cache


def register(cache: AdapterCache, name: str, *, is_pinned: bool = False) -> None:
    layout = cast(AdapterLayout, None)
    spec = AdapterSpec(name, name, Path(name), layout, "model", is_pinned)
    cache.register(spec, cast(PackedAdapter, object()))


def with_adapters(names: str, **fields: object) -> Sequence:
    """A sequence that runs with the adapters that the letters name."""
    mix = AdapterMix(tuple(AdapterUse(name) for name in names))
    return create_sequence(adapters=mix, **fields)  # type: ignore[arg-type]


def create_memory(num_rows: int) -> ResidentMemory:
    segment = create_segment(num_tokens=num_rows, num_latents=0)
    return ResidentMemory(Memory().followed_by(segment), {})


def add_all(scheduler: Scheduler, *sequences: Sequence) -> None:
    for sequence in sequences:
        scheduler.add(sequence)


def step(scheduler: Scheduler) -> list[tuple[Sequence, int]]:
    """One step as an engine computes it, without the model; finished sequences are removed."""
    if isinstance(scheduler.adapters, AdapterCache):
        cast(NextStepLoader, scheduler.adapters._loader).end_all()
    scheduled = scheduler.schedule()
    for sequence, num_rows in scheduled:
        is_last_known = num_rows == sequence.num_uncomputed
        if is_last_known and sequence.next_row is NextRow.LATENT:
            sequence.latents.append(LATENT)
        elif is_last_known and sequence.next_row is NextRow.TOKEN:
            sequence.output_ids.append(0)
    scheduler.advance(scheduled)
    for sequence, _ in scheduled:
        if is_finished(sequence):
            scheduler.remove(sequence)
    check(scheduler)
    return [(rows.sequence, rows.num_rows) for rows in scheduled]


def is_finished(sequence: Sequence) -> bool:
    sampling = sequence.turn.sampling
    if sampling is not None:
        return len(sequence.output_ids) == sampling.max_tokens
    return sequence.next_row is NextRow.NOTHING and sequence.num_uncomputed == 0


def check(scheduler: Scheduler) -> None:
    memories = cast(FakeMemories, scheduler.memories)
    running, waiting = scheduler.running, scheduler.waiting
    num_refs = sum(len(sequence.block_table) for sequence in [*running, *scheduler.suspended])
    scheduler.blocks.check_integrity(num_refs + len(memories.idle_block_ids))
    waiting.check_integrity(running)
    assert all(sequence.is_suspended or sequence.block_table == [] for sequence in waiting)
    assert not any(sequence.is_suspended for sequence in running)
    if isinstance(scheduler.adapters, AdapterCache):
        scheduler.adapters.check_integrity([s.mix for s in running], [s.mix for s in waiting])


def run_until(scheduler: Scheduler, is_reached: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if is_reached():
            return
        step(scheduler)
    raise AssertionError("never reached")


def create_crowd(num_blocks: int, num_speakers: int) -> tuple[Scheduler, list[Sequence]]:
    """Speakers that all fit when they start and not when they grow."""
    scheduler = create_scheduler(num_blocks=num_blocks)
    speakers = [create_sequence(num_tokens=4, max_tokens=17) for _ in range(num_speakers)]
    add_all(scheduler, *speakers)
    step(scheduler)
    assert scheduler.running == speakers
    return scheduler, speakers
