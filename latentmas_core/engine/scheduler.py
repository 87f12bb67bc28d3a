"""Decides which rows the next step computes. Knows blocks, adapters and sequences, no tensors.

Rows of sequences that think or speak go first, one each; what is left of the step's budget goes to
prompts, in chunks, the kind of sequence that was served least first. A sequence starts when its
adapters are on the device and it has blocks. When a speaking sequence finds no block, idle adapters
and idle memories are moved out of the pool, but not the adapters of the one that waits first; then
the youngest sequence is preempted.

More adapters than places share them by time: when the first that waits has waited for a moment, the
sequences of the most served adapter are *suspended*. They wait again, without their adapter but
with their blocks, so they go on where they stopped. Blocks that are short are theirs first of all.
"""

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple, Protocol

from latentmas_core.engine.block_manager import BlockManager
from latentmas_core.engine.fair_queue import FairQueue
from latentmas_core.engine.row_blocks import MemoryAccess, RowBlocks
from latentmas_core.engine.sequence import Sequence
from latentmas_core.latent.segment import BASE_ADAPTER
from latentmas_core.lora.arena import Berth
from latentmas_core.lora.cached_adapter import Readiness
from latentmas_core.lora.mix import NO_ADAPTERS, AdapterMix

# Rows that a sequence finds out before it may be suspended: so all come to their end, however often
# they are suspended, and no adapter is loaded for less.
SLICE_ROWS = 8
# Steps that the first waits for a place that becomes free by itself, before another is suspended.
PATIENCE_STEPS = 2


class ScheduledRows(NamedTuple):
    """The next ``num_rows`` known rows of a sequence."""

    sequence: Sequence
    num_rows: int


class AdapterAccess(Protocol):
    """What the scheduler asks of the cache of adapters."""

    def hold(self, mix: AdapterMix) -> None: ...
    def drop(self, mix: AdapterMix) -> None: ...
    def keep(self, mix: AdapterMix) -> None: ...
    def request(self, mix: AdapterMix, *, is_first: bool) -> Readiness: ...
    def ready(self) -> set[str]: ...
    def acquire(self, mix: AdapterMix) -> list[Berth]: ...
    def release(self, mix: AdapterMix) -> None: ...
    def running(self, *, besides: AdapterMix) -> SequenceOf[str]: ...
    def is_on_host(self, mix: AdapterMix) -> bool: ...
    @property
    def num_loading(self) -> int: ...
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
        slice_rows: int = SLICE_ROWS,
        patience_steps: int = PATIENCE_STEPS,
    ) -> None:
        self.blocks = blocks
        self.memories = memories
        self.adapters = adapters
        self._row_blocks = RowBlocks(blocks, memories)
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.slice_rows = slice_rows
        self.patience_steps = patience_steps
        self.waiting = FairQueue()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_suspensions = 0
        # Waits first of all, and no adapter gives it its place yet.
        self.stuck: Sequence | None = None
        # Starts no more sequences while the first is stuck, so that its place becomes free.
        self._draining: str | None = None
        # For whom others were suspended: it is the first until it runs, however much it was served.
        self._promised: Sequence | None = None

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def suspended(self) -> list[Sequence]:
        """Those among the waiting that have blocks and computed rows."""
        return [sequence for sequence in self.waiting if sequence.is_suspended]

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
        first = self._serve_first()
        budget = self._schedule_running(scheduled)
        self._admit(scheduled, budget, first)
        # Rows of one adapter stand together, so that they are multiplied together.
        return sorted(
            scheduled.values(), key=lambda rows: (rows.num_rows > 1, rows.sequence.row_order)
        )

    def advance(self, scheduled: list[ScheduledRows]) -> None:
        """Note that the scheduled rows are computed and let their full blocks be found again."""
        for sequence, num_rows in scheduled:
            sequence.num_computed += num_rows
            self.waiting.charge(sequence, num_rows)
            self._row_blocks.publish(sequence)

    def remove(self, sequence: Sequence, *, keeps_tail: bool = False) -> None:
        """Forget a sequence that was added and drop its references, wherever it is."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._let_adapters_go(sequence)
            self._row_blocks.free(sequence, keeps_tail=keeps_tail)
        elif sequence.is_suspended:
            self._row_blocks.free(sequence)
        if self._promised is sequence:
            self._promised = None
        self.waiting.leave(sequence)
        self.memories.unpin(sequence.turn.memory)
        self.adapters.drop(sequence.mix)

    def make_room(self, num_blocks: int, *, spared: Sequence | None = None) -> bool:
        """True if ``num_blocks`` are free, after what is idle moved out and, if that was not
        enough, suspended sequences gave theirs up, first those that would go on last."""
        while not self._make_room_of_idle(num_blocks, spared=spared):
            suspended = [sequence for sequence in self.suspended if sequence is not spared]
            if not suspended:
                return False
            self._reclaim(max(suspended, key=self._place_in_turn))
        return True

    def _make_room_of_idle(self, num_blocks: int, *, spared: Sequence | None) -> bool:
        """The same, after idle adapters, then idle memories, moved out."""
        if self.blocks.can_allocate(num_blocks):
            return True
        num_of_memories = max(num_blocks - self.adapters.num_idle_blocks, 0)
        memory = spared.turn.memory if spared else None
        if not self.memories.make_room(num_of_memories, spared=memory):
            return False
        while not self.blocks.can_allocate(num_blocks) and self.adapters.evict_one():
            pass
        return self.blocks.can_allocate(num_blocks)

    def _place_in_turn(self, sequence: Sequence) -> tuple[int, int]:
        return self.waiting.num_served(sequence.kind), sequence.sequence_id

    def _serve_first(self) -> Sequence | None:
        """Bring the adapters of the first that waits; see to it that they get their places."""
        first = self._promised or self.waiting.first()
        self.adapters.keep(first.mix if first else NO_ADAPTERS)
        if first is None or self._has_places(first) or self._takes_places(first):
            self.stuck = self._draining = None
        else:
            self.stuck = first
            self._draining = self._adapter_to_drain(first)
        return first

    def _has_places(self, first: Sequence) -> bool:
        """Whether its adapters are on the device or on their way."""
        return self.adapters.request(first.mix, is_first=True) is not Readiness.BLOCKED

    def _takes_places(self, first: Sequence) -> bool:
        """The same, after others were suspended for it, if it is time."""
        if not self.adapters.is_full():
            return False
        first.num_blocked_steps += 1
        digest = self._adapter_to_suspend(first)
        if digest is None or first.num_blocked_steps < self.patience_steps:
            return False
        # Without room for it, whoever is suspended would soon be recomputed.
        if not self._make_room_of_idle(self._row_blocks.num_to_start(first), spared=first):
            return False
        self._suspend_users(digest)
        self._promised = first
        return self._has_places(first)

    def _adapter_to_suspend(self, first: Sequence) -> str | None:
        """The most served one of those whose sequences have all run for a while."""
        running = [
            digest
            for digest in self.adapters.running(besides=first.mix)
            if all(map(self._may_be_suspended, self._users(digest)))
        ]
        return max(running, key=self._num_served, default=None)

    def _may_be_suspended(self, sequence: Sequence) -> bool:
        """Not if a file would be read for the rest of its answer: that is slow, and may fail."""
        has_run = sequence.num_gained >= self.slice_rows
        return has_run and self.adapters.is_on_host(sequence.mix)

    def _adapter_to_drain(self, first: Sequence) -> str | None:
        """The adapter that starts no more sequences, so that its place becomes free for another.

        The most served one, and the same until it is free: so nobody waits for ever. None if it is
        blocks that are missing, or places that no running sequence will give back.
        """
        if not self.adapters.is_full():
            return None
        running = self.adapters.running(besides=first.mix)
        if self._draining in running:
            return self._draining
        return max(running, key=self._num_served, default=None)

    def _num_served(self, digest: str) -> int:
        """Rows that count for the most served kind of those that run with an adapter."""
        return max(self.waiting.num_served(sequence.kind) for sequence in self._users(digest))

    def _users(self, digest: str) -> list[Sequence]:
        return [sequence for sequence in self.running if digest in sequence.mix.digests]

    def _suspend_users(self, digest: str) -> None:
        for sequence in reversed(self._users(digest)):  # so the oldest is first of its kind again
            self.running.remove(sequence)
            self._let_adapters_go(sequence)
            sequence.is_suspended = True
            self.num_suspensions += 1
            self.waiting.put_back(sequence)

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

    def _admit(
        self, scheduled: dict[int, ScheduledRows], budget: int, first: Sequence | None
    ) -> None:
        if self.stuck is not None and self._draining is None:
            return  # whatever ends now makes room for this one, and for nobody else
        if len(self.running) >= self.max_num_seqs:
            return  # without sorting all that wait
        startable: set[str] | None = None  # adapters; None: others may still be loaded
        for sequence in self._candidates():
            is_first = sequence is first
            if budget == 0 or len(self.running) >= self._max_running(sequence):
                return
            if self._draining in sequence.kind:
                continue
            if startable is not None and not (is_first or startable.issuperset(sequence.kind)):
                continue
            readiness = self.adapters.request(sequence.mix, is_first=is_first)
            if startable is None and readiness is Readiness.BLOCKED and self.adapters.is_full():
                # None is looked for on behalf of those behind it in this step, they may be
                # thousands: it is rare that one of them could have had what this one could not.
                startable = {BASE_ADAPTER, *self.adapters.ready()}
            if readiness is not Readiness.READY:
                continue
            if not self._make_room_for(sequence, is_first=is_first):
                return
            self._start(sequence)
            num_rows = min(sequence.num_uncomputed, budget)
            scheduled[sequence.sequence_id] = ScheduledRows(sequence, num_rows)
            budget -= num_rows

    def _candidates(self) -> Iterator[Sequence]:
        promised = self._promised
        if promised is not None:
            yield promised
        yield from (s for s in self.waiting.in_turn() if s is not promised)

    def _max_running(self, sequence: Sequence) -> int:
        """One is left for the promised one, whose adapter is still on its way."""
        is_left = self._promised is not None and self._promised is not sequence
        return self.max_num_seqs - is_left

    def _make_room_for(self, sequence: Sequence, *, is_first: bool) -> bool:
        """Room for everything up to the last latent step, so that only speaking grows later.

        If there is, the sequence holds its adapters from now on.
        """
        # Before anything moves out: they must not be among what does.
        sequence.berths = self.adapters.acquire(sequence.mix)
        make_room = self.make_room if is_first else self._make_room_of_idle
        if make_room(self._row_blocks.num_to_start(sequence), spared=sequence):
            return True
        self._let_adapters_go(sequence)
        return False

    def _let_adapters_go(self, sequence: Sequence) -> None:
        self.adapters.release(sequence.mix)
        sequence.berths = []

    def _start(self, sequence: Sequence) -> None:
        self.waiting.take(sequence)
        self._row_blocks.take_to_start(sequence)
        sequence.begin_slice()
        if self._promised is sequence:
            self._promised = None
        self.running.append(sequence)

    def _ensure_blocks(
        self, sequence: Sequence, num_rows: int, scheduled: dict[int, ScheduledRows]
    ) -> bool:
        """Blocks for the next rows; False if ``sequence`` itself had to give way."""
        num_missing = self._row_blocks.num_missing(sequence, num_rows)
        while num_missing > 0 and not self.make_room(num_missing):
            victim = self.running[-1]
            # An adapter that is loading keeps its room even if nobody waits for it any more.
            assert victim is not sequence or self._will_have_room, (
                f"{sequence} needs {num_missing} blocks of an empty pool; it was not checked"
            )
            scheduled.pop(victim.sequence_id, None)
            self._preempt(victim)
            if victim is sequence:
                return False
        if num_missing > 0:
            self._row_blocks.extend(sequence, num_missing)
        return True

    @property
    def _will_have_room(self) -> bool:
        return len(self.running) > 1 or bool(self.waiting) or self.adapters.num_loading > 0

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._let_adapters_go(sequence)
        self._reclaim(sequence)
        self.waiting.put_back(sequence)

    def _reclaim(self, sequence: Sequence) -> None:
        """Take the blocks of a sequence that does not run any more; it will be recomputed."""
        self._row_blocks.free(sequence)
        sequence.forget_computed()
        sequence.num_preemptions += 1
        self.num_preemptions += 1
