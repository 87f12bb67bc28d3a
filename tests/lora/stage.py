"""The engine's thread without a thread and without a model: rows are marks, loads end when told.

A row's keys and values hold a number that tells by which adapters, behind which rows and from which
input it was computed. So rows that were moved, kept, shared or overwritten wrongly are found out,
and so are adapters whose blocks hold anything else.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from zlib import crc32

import torch

from latentmas_core.config import EngineConfig
from latentmas_core.engine.block_manager import prefix_keys
from latentmas_core.engine.detokenizer import Detokenizer
from latentmas_core.engine.kv_pool import KVPool, num_block_bytes
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.scheduler import ScheduledRows
from latentmas_core.engine.sequence import NextRow, Sequence
from latentmas_core.engine.stepper import Stepper
from latentmas_core.engine.turn import TurnDone, TurnEvent
from latentmas_core.errors import AdapterError, LatentMASError
from latentmas_core.latent.segment import KVRows
from latentmas_core.lora.arena import fill
from latentmas_core.lora.cache import Loader
from latentmas_core.lora.cached_adapter import AdapterSpec, CachedAdapter
from latentmas_core.lora.mix import AdapterMix, AdapterUse
from latentmas_core.lora.packed import AdapterLayout, PackedAdapter
from tests.engine.engines import load_plain
from tests.engine.turns import create_turn

BLOCK_SIZE = 4
TARGET = "self_attn.q_proj"
RANKS_PER_BLOCK = 2  # of the tiny models, with that one target

OnEnd = Callable[[PackedAdapter | LatentMASError], None]


@dataclass
class HeldLoader:
    """Loads that stand still until the test ends them. ``disk``: what can be read again."""

    disk: dict[str, PackedAdapter] = field(default_factory=dict)
    pending: list[tuple[CachedAdapter, PackedAdapter | None, OnEnd]] = field(default_factory=list)

    def start(self, adapter: CachedAdapter, on_end: OnEnd) -> None:
        self.pending.append((adapter, adapter.packed, on_end))

    def end(self, index: int = 0, *, fails: bool = False) -> None:
        adapter, packed, on_end = self.pending.pop(index)
        packed = packed or self.disk.get(adapter.spec.folder.name)
        if fails or packed is None:
            on_end(AdapterError(f"adapter {adapter.spec.name!r} is lost", param="adapters"))
            return
        assert adapter.berth is not None, "room is kept until a load has ended"
        fill(adapter.berth, packed)
        on_end(packed)

    def end_all(self) -> None:
        while self.pending:
            self.end()

    def close(self) -> None: ...


@dataclass(eq=False)
class Ticket:
    """A turn on the stage and what came of it."""

    sequence: Sequence
    names: tuple[str, ...]
    events: list[TurnEvent | LatentMASError]
    is_aborted: bool = False

    @property
    def done(self) -> TurnDone | None:
        last = self.events[-1] if self.events else None
        return last if isinstance(last, TurnDone) else None

    @property
    def error(self) -> LatentMASError | None:
        last = self.events[-1] if self.events else None
        return last if isinstance(last, LatentMASError) else None

    @property
    def has_ended(self) -> bool:
        return self.is_aborted or self.done is not None or self.error is not None


class Stage:
    """A ``Stepper`` whose steps write marks; ``step`` checks all that can be checked."""

    def __init__(
        self, model: Path, *, num_blocks: int = 100, max_loaded: int = 3, **settings: object
    ) -> None:
        loaded = load_plain(model)
        block_bytes = num_block_bytes(loaded.shape, BLOCK_SIZE, torch.float32)
        lora = {"max_loaded_adapters": max_loaded, "max_cpu_adapters": settings.pop("max_host", 99)}
        config = EngineConfig(
            model_name=loaded.name,
            device="cpu",
            dtype="float32",
            block_size=BLOCK_SIZE,
            kv_cache_bytes=num_blocks * block_bytes,
            lora=lora,
            **settings,
        )
        self.posted: list[Callable[[], None]] = []
        self.stepper = Stepper(config, loaded, post=self.posted.append)
        self.stepper.loader.close()
        self.loader = HeldLoader()
        self.stepper.adapters._loader = cast(Loader, self.loader)
        self.stepper.runner.step = self._write_marks  # type: ignore[method-assign]
        self.adapters = self.stepper.adapters
        self.scheduler = self.stepper.scheduler
        self.packed: dict[str, PackedAdapter] = {}
        self.evicted: list[str] = []
        self.num_moved = 0
        self._tokenizer = loaded.tokenizer.backend_tokenizer
        self._marks: dict[int, list[int]] = {}
        self._watch()

    # What tests do.

    def load(self, name: str, *, rank: int = 8, is_pinned: bool = False, seed: str = "") -> str:
        """Register a random adapter of ``rank / 2`` blocks; its digest is made of the arguments."""
        digest = f"{seed or name}-{rank}"
        layout = AdapterLayout.of(self.stepper.runner.base, [TARGET], rank)
        if digest not in self.packed:
            self.packed[digest] = _create_packed(digest, layout, self.stepper)
        packed = self.packed[digest]
        self.loader.disk[digest] = packed
        spec = AdapterSpec(name, digest, Path(digest), layout, "tiny", is_pinned)
        self.stepper.register(spec, packed)
        return digest

    def mix(self, *names: str, **weights: float) -> AdapterMix:
        chosen = dict.fromkeys(names, 1.0) | weights
        return AdapterMix(
            tuple(AdapterUse(self.adapters.find(name).digest, w) for name, w in chosen.items())
        )

    def submit(
        self, *names: str, num_tokens: int = 6, first_token: int = 0, **fields: object
    ) -> Ticket:
        prompt = tuple(range(first_token, first_token + num_tokens))
        turn = create_turn(prompt, **({"adapters": self.mix(*names)} | fields))
        events: list[TurnEvent | LatentMASError] = []
        has_keys = turn.memory is None
        keys = prefix_keys(turn.mix.key, prompt, BLOCK_SIZE) if has_keys else []
        sequence = Sequence(
            turn,
            sink=events.append,
            detokenizer=Detokenizer(self._tokenizer, ()),
            prefix_keys=keys,
        )
        ticket = Ticket(sequence, names, events)
        self.stepper.add(sequence)
        return ticket

    def abort(self, ticket: Ticket) -> None:
        ticket.is_aborted = True
        self.stepper.abort(ticket.sequence)

    def step(self) -> bool:
        """One step; False if none could be computed."""
        for command in self.posted:
            command()
        self.posted.clear()
        is_computed = self.stepper.has_work and self.stepper.step()
        self.check()
        return is_computed

    def run(self, *tickets: Ticket, ends_loads: bool = True, max_steps: int = 2000) -> None:
        """Step until all given turns have ended, or nothing is left to do."""
        for _ in range(max_steps):
            if tickets and all(ticket.has_ended for ticket in tickets):
                return
            is_computed = self.step()
            if ends_loads and self.loader.pending:
                self.loader.end()
            elif not is_computed:
                break
        assert all(ticket.has_ended for ticket in tickets), f"a turn never ends: {tickets}"

    def loaded(self) -> list[str]:
        """Names on the device, longest unused first."""
        return [self.adapters._adapters[digest].spec.name for digest in self.adapters.loaded()]

    def release(self, memory: ResidentMemory) -> None:
        self.stepper.memories.release(memory)

    def assert_empty(self) -> None:
        """No turn, no memory, no reference; blocks are taken by loaded adapters alone."""
        assert not self.stepper.has_work
        assert not self.scheduler.has_work
        assert not self.loader.pending
        assert len(self.stepper.memories) == 0
        assert self.stepper.blocks.num_used == self.adapters.num_blocks
        for adapter in self.adapters._adapters.values():
            assert (adapter.num_refs, adapter.num_holds) == (0, 0), adapter.spec.name
            assert not adapter.is_claimed, f"{adapter.spec.name} is kept for nobody"
            assert adapter.names, f"{adapter.spec.name} drains for ever"

    # What must hold at any time.

    def check(self) -> None:
        self.stepper.check_integrity()
        for adapter in self.adapters._on_device.values():
            if adapter.is_ready:
                self._check_berth(adapter)
        for memory in self.stepper.memories._held.values():
            if memory.block_table is not None:
                self._check_rows(memory.block_table, self._marks[id(memory)])
        for sequence in [*self.scheduler.running, *self.scheduler.suspended]:
            self._check_rows(sequence.block_table, self._marks_of(sequence)[: sequence.num_slots])

    def _check_berth(self, adapter: CachedAdapter) -> None:
        berth, packed = adapter.berth, self.packed[adapter.spec.digest]
        assert berth is not None
        a, b = (torch.cat(matrices) for matrices in zip(*berth.parts, strict=True))
        assert torch.equal(a, packed.a), f"{adapter.spec.name}: shrink"
        assert torch.equal(b, packed.b), f"{adapter.spec.name}: expand"

    def _check_rows(self, block_table: list[int], marks: list[int]) -> None:
        pool = self.stepper.pool
        rows = pool.read(pool.slots(block_table, 0, len(marks)))
        expected = torch.tensor(marks, dtype=torch.float32)[None, :, None, None]
        assert bool((rows.keys == expected).all()), "keys of other rows"
        assert bool((rows.values == expected).all()), "values of other rows"

    # In place of a model.

    def _write_marks(self, scheduled: list[ScheduledRows], pool: KVPool) -> None:
        for sequence, num_rows in scheduled:
            digests = [self.adapters._adapters[d].berth for d in sequence.mix.digests]
            assert sequence.berths == digests, "computed with other adapters"
            start = sequence.num_slots
            marks = self._marks_of(sequence)[start : start + num_rows]
            shape = (pool.keys.shape[0], num_rows, *pool.keys.shape[3:])
            rows = torch.tensor(marks, dtype=torch.float32)[None, :, None, None].expand(shape)
            slots = pool.slots(sequence.block_table, start, start + num_rows)
            pool.write(slots, KVRows(rows, rows))
            if num_rows == sequence.num_uncomputed:
                self._append_row(sequence)

    def _append_row(self, sequence: Sequence) -> None:
        if sequence.next_row is NextRow.LATENT:
            sequence.latents.append(torch.zeros(self.stepper.runner.shape.hidden_size))
        elif sequence.next_row is NextRow.TOKEN:
            sequence.output_ids.append(len(sequence.output_ids))

    def _marks_of(self, sequence: Sequence) -> list[int]:
        """Of the rows of its memory, and of all its known rows."""
        memory = sequence.turn.memory
        marks = list(self._marks[id(memory)]) if memory else []
        latents = ["latent"] * len(sequence.latents)
        for row in (*sequence.token_ids, *latents, *sequence.output_ids):
            before = marks[-1] if marks else 0
            marks.append(crc32(f"{sequence.mix.key} {before} {row}".encode()) % 2**20)
        return marks

    def _watch(self) -> None:
        """Note what is evicted, what moves, and the marks of memories that are handed over."""
        evict, adopt = self.adapters._evict, self.stepper.memories.adopt
        arena = self.adapters._arena
        mend = arena._mend_tables

        def evicted(adapter: CachedAdapter) -> None:
            self.evicted.append(adapter.spec.name)
            evict(adapter)

        def mended(moves: dict[int, int]) -> None:
            self.num_moved += len(moves)
            mend(moves)

        def adopted(sequence: Sequence, segment: object) -> ResidentMemory:
            memory = adopt(sequence, segment)  # type: ignore[arg-type]
            self._marks[id(memory)] = self._marks_of(sequence)[: memory.num_rows]
            return memory

        self.adapters._evict = evicted  # type: ignore[method-assign]
        self.stepper.memories.adopt = adopted  # type: ignore[method-assign]
        arena._mend_tables = mended  # type: ignore[assignment]


def _create_packed(digest: str, layout: AdapterLayout, stepper: Stepper) -> PackedAdapter:
    generator = torch.Generator().manual_seed(crc32(digest.encode()))
    num_layers = stepper.runner.base.num_layers
    a = torch.randn(num_layers, layout.num_a, generator=generator)
    b = torch.randn(num_layers, layout.num_b, generator=generator)
    return PackedAdapter(digest, layout, a, b)
