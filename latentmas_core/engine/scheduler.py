"""Decides which rows the next step computes. Knows blocks, adapters and sequences, no tensors.

Rows of sequences that think or speak go first, one each; what is left of the step's budget goes to
prompts, in chunks, the kind of sequence that was served least first. A sequence starts when its
adapters are on the device and it has blocks. When a speaking sequence finds no block, idle adapters
and idle memories are moved out of the pool, but not the adapters of the one that waits first; then
the youngest sequence is preempted.
"""

from collections.abc import Sequence as SequenceOf
from typing import NamedTuple, Protocol

from latentmas_core.engine.block_manager import BlockManager
from latentmas_core.engine.fair_queue import FairQueue
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.sequence import Sequence
from latentmas_core.lora.arena import Berth
from latentmas_core.lora.cached_adapter import Readiness
from latentmas_core.lora.mix import NO_ADAPTERS, AdapterMix


class ScheduledRows(NamedTuple):
    """The next ``num_rows`` known rows of a sequence."""

    sequence: Sequence
    num_rows: int


class MemoryAccess(Protocol):
    """What the scheduler asks of the store of memories."""

    def pin(self, memory: ResidentMemory | None) -> None: ...
    def unpin(self, memory: ResidentMemory | None) -> None: ...
    def num_blocks_to_attach(self, memory: ResidentMemory | None) -> int: ...
    def attach(self, sequence: Sequence) -> None: ...
    def detach(self, sequence: Sequence, *, keeps_tail: bool = False) -> None: ...
    def make_room(self, num_blocks: int, *, spared: ResidentMemory | None = None) -> bool: ...


class AdapterAccess(Protocol):
    """What the scheduler asks of the cache of adapters."""

    def hold(self, mix: AdapterMix) -> None: ...
    def drop(self, mix: AdapterMix) -> None: ...
    def keep(self, mix: AdapterMix) -> None: ...
    def request(self, mix: AdapterMix, *, is_first: bool) -> Readiness: ...
    def acquire(self, mix: AdapterMix) -> list[Berth]: ...
    def release(self, mix: AdapterMix) -> None: ...
    def running(self, *, besides: AdapterMix) -> SequenceOf[str]: ...
    @property
    def num_idle_blocks(self) -> int: ...
    def evict_one(self) -> bool: ...
    def is_full(self) -> bool: ...


class Scheduler:
    """Waiting and running sequences, admitted by adapters and blocks in a fair order."""

    def __init__(
        self,
        blocks: BlockManager,
        memories: MemoryAccess,
        adapters: AdapterAccess,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
    ) -> None:
        self.blocks = blocks
        self.memories = memories
        self.adapters = adapters
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting = FairQueue()
        # Waits first of all, and no adapter of the running ones would give it its place.
        self.stuck: Sequence | None = None
        self._draining: str | None = None
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn; what it reads and needs stays from now on.

        Raises AdapterError if an adapter is not there.
        """
        self.adapters.hold(sequence.mix)
        self.memories.pin(sequence.turn.memory)
        self.waiting.enter(sequence)

    def schedule(self) -> list[ScheduledRows]:
        """The rows of the next step, sequences with one row first; empty if nothing can run."""
        scheduled: dict[int, ScheduledRows] = {}
        budget = self._schedule_running(scheduled)
        self._admit(scheduled, budget)
        # Rows of one adapter stand together, so that they are multiplied together.
        return sorted(
            scheduled.values(), key=lambda rows: (rows.num_rows > 1, rows.sequence.row_order)
        )

    def advance(self, scheduled: list[ScheduledRows]) -> None:
        """Note that the scheduled rows are computed and let their full blocks be found again."""
        for sequence, num_rows in scheduled:
            sequence.num_computed += num_rows
            self.waiting.charge(sequence, num_rows)
            self._publish(sequence)

    def remove(self, sequence: Sequence, *, keeps_tail: bool = False) -> None:
        """Forget a sequence that was added and drop its references, wherever it is."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._free(sequence, keeps_tail=keeps_tail)
        self.waiting.leave(sequence)
        self.memories.unpin(sequence.turn.memory)
        self.adapters.drop(sequence.mix)

    def make_room(self, num_blocks: int, *, spared: ResidentMemory | None = None) -> bool:
        """True if ``num_blocks`` are free, after idle adapters, then idle memories, moved out."""
        if self.blocks.can_allocate(num_blocks):
            return True
        num_of_memories = max(num_blocks - self.adapters.num_idle_blocks, 0)
        if not self.memories.make_room(num_of_memories, spared=spared):
            return False
        while not self.blocks.can_allocate(num_blocks) and self.adapters.evict_one():
            pass
        return self.blocks.can_allocate(num_blocks)

    def _schedule_running(self, scheduled: dict[int, ScheduledRows]) -> int:
        budget = self.max_num_batched_tokens
        for sequence in sorted(self.running, key=lambda sequence: sequence.num_uncomputed > 1):
            if sequence not in self.running:
                continue  # preempted for an older one
            num_rows = min(sequence.num_uncomputed, budget)
            if num_rows == 0 or not self._ensure_blocks(sequence, num_rows, scheduled):
                continue
            scheduled[sequence.sequence_id] = ScheduledRows(sequence, num_rows)
            budget -= num_rows
        return budget

    def _admit(self, scheduled: dict[int, ScheduledRows], budget: int) -> None:
        self.stuck = None
        is_first = True
        kept_back: str | None = None
        self.adapters.keep(NO_ADAPTERS)
        for sequence in self.waiting.in_turn():
            if is_first:
                self.adapters.keep(sequence.mix)
            if budget == 0 or len(self.running) >= self.max_num_seqs:
                return
            if kept_back in sequence.mix.digests:
                continue
            readiness = self.adapters.request(sequence.mix, is_first=is_first)
            if is_first and readiness is Readiness.BLOCKED:
                self.stuck = sequence
                kept_back = self._adapter_to_drain(sequence)
                if kept_back is None:
                    return  # whatever ends now makes room for this one, and for nobody else
            is_first = False
            if readiness is not Readiness.READY:
                continue
            if not self._make_room_for(sequence):
                return
            self._start(sequence)
            num_rows = min(sequence.num_uncomputed, budget)
            scheduled[sequence.sequence_id] = ScheduledRows(sequence, num_rows)
            budget -= num_rows

    def _adapter_to_drain(self, sequence: Sequence) -> str | None:
        """The adapter that starts no more sequences, so that its place becomes free for another.

        The most served one, and the same until it is free: so nobody waits for ever. None if it is
        blocks that are missing, or places that no running sequence will give back.
        """
        if not self.adapters.is_full():
            return None
        running = self.adapters.running(besides=sequence.mix)
        if self._draining not in running:
            self._draining = max(running, key=self.waiting.num_served, default=None)
        return self._draining

    def _make_room_for(self, sequence: Sequence) -> bool:
        """Room for everything up to the last latent step, so that only speaking grows later.

        If there is, the sequence holds its adapters from now on.
        """
        memory = sequence.turn.memory
        # Before anything moves out: they must not be among what does.
        sequence.berths = self.adapters.acquire(sequence.mix)
        num_blocks = self._num_own_blocks(sequence) + self.memories.num_blocks_to_attach(memory)
        if self.make_room(num_blocks, spared=memory):
            return True
        self._let_adapters_go(sequence)
        return False

    def _let_adapters_go(self, sequence: Sequence) -> None:
        self.adapters.release(sequence.mix)
        sequence.berths = []

    def _num_own_blocks(self, sequence: Sequence) -> int:
        num_rows = sequence.num_known + sequence.num_latents_due - len(sequence.latents)
        num_slots = sequence.num_memory_rows + num_rows
        num_memory_blocks = self.blocks.num_blocks_for(sequence.num_memory_rows)
        return self.blocks.num_blocks_for(num_slots) - num_memory_blocks

    def _start(self, sequence: Sequence) -> None:
        self.waiting.take(sequence)
        self.memories.attach(sequence)
        if sequence.turn.memory is None:
            self._reuse_prefix(sequence)
        num_rows = sequence.num_known + sequence.num_latents_due - len(sequence.latents)
        num_blocks = self.blocks.num_blocks_for(sequence.num_memory_rows + num_rows)
        sequence.block_table += self.blocks.allocate(num_blocks - len(sequence.block_table))
        self.running.append(sequence)

    def _reuse_prefix(self, sequence: Sequence) -> None:
        # The last prompt row is always computed: what follows is found out from its hidden state.
        num_reusable = (len(sequence.token_ids) - 1) // self.blocks.block_size
        block_ids = self.blocks.match_prefix(sequence.prefix_keys[:num_reusable])
        sequence.block_table = block_ids
        sequence.num_published = len(block_ids)
        sequence.num_computed = len(block_ids) * self.blocks.block_size
        if sequence.num_preemptions == 0:
            sequence.num_cached_tokens = sequence.num_computed

    def _ensure_blocks(
        self, sequence: Sequence, num_rows: int, scheduled: dict[int, ScheduledRows]
    ) -> bool:
        """Blocks for the next rows; False if ``sequence`` itself had to give way."""
        num_missing = self.blocks.num_blocks_for(sequence.num_slots + num_rows)
        num_missing -= len(sequence.block_table)
        while num_missing > 0 and not self.make_room(num_missing):
            victim = self.running[-1]
            assert victim is not sequence or len(self.running) > 1 or self.waiting, (
                f"{sequence} needs {num_missing} blocks of an empty pool; it was not checked"
            )
            scheduled.pop(victim.sequence_id, None)
            self._preempt(victim)
            if victim is sequence:
                return False
        if num_missing > 0:
            sequence.block_table += self.blocks.allocate(num_missing)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        sequence.forget_computed()
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.put_back(sequence)

    def _free(self, sequence: Sequence, *, keeps_tail: bool = False) -> None:
        self.blocks.free(sequence.block_table)
        sequence.block_table = []
        self.memories.detach(sequence, keeps_tail=keeps_tail)
        self._let_adapters_go(sequence)

    def _publish(self, sequence: Sequence) -> None:
        num_full = sequence.num_computed // self.blocks.block_size
        for index in range(sequence.num_published, min(num_full, len(sequence.prefix_keys))):
            self.blocks.publish(sequence.block_table[index], sequence.prefix_keys[index])
            sequence.num_published = index + 1
