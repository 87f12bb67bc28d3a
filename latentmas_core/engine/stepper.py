"""Everything that belongs to the engine's thread: the model, the blocks, every sequence.

Computes step after step, tells each sequence's receiver what came of it, and frees what a turn
held, whatever way it ends. Knows no threads and no event loops.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping

from latentmas_core.config import EngineConfig
from latentmas_core.engine.adapter_room import AdapterRoom
from latentmas_core.engine.block_manager import BlockManager
from latentmas_core.engine.deadlines import Deadlines
from latentmas_core.engine.inbox import Post
from latentmas_core.engine.kv_pool import Pool
from latentmas_core.engine.limits import TurnLimits
from latentmas_core.engine.memory_store import MemoryStore
from latentmas_core.engine.model_loader import LoadedModel
from latentmas_core.engine.model_runner import ModelRunner
from latentmas_core.engine.pool_size import choose_block_size, choose_num_blocks
from latentmas_core.engine.scheduler import Scheduler
from latentmas_core.engine.sequence import NextRow, Sequence
from latentmas_core.engine.split_pool import make_pool
from latentmas_core.engine.stats import Counters, EngineStats
from latentmas_core.engine.token_text import RowLogprobs, TokenTexts
from latentmas_core.engine.turn import PhaseBegun, TextDelta, Thought, TurnDone, TurnEvent
from latentmas_core.errors import (
    AdapterError,
    EngineError,
    LatentMASError,
    LostError,
)
from latentmas_core.logprobs import AnswerToken
from latentmas_core.lora.arena import Arena
from latentmas_core.lora.cache import AdapterCache
from latentmas_core.lora.cached_adapter import AdapterSpec
from latentmas_core.lora.loader import AdapterLoader
from latentmas_core.lora.mix import AdapterMix
from latentmas_core.lora.packed import PackedAdapter
from latentmas_core.phases import Phase

logger = logging.getLogger(__name__)


class Stepper:
    """Admits sequences, computes their rows, reports, and lets them go.

    ``post`` puts a command off until no step is under way.
    """

    def __init__(self, config: EngineConfig, loaded: LoadedModel, *, post: Post) -> None:
        self.fingerprint = loaded.fingerprint
        self.eos_token_ids = loaded.eos_token_ids
        lora = config.lora
        self.runner = ModelRunner(
            loaded,
            is_realigned=config.latent_realign,
            has_lora=lora.max_loaded_adapters > 0,
        )
        self.blocks, self.pool = _make_pool(config, self.runner)
        self.memories = MemoryStore(
            self.blocks,
            self.pool,
            inv_freq=self.runner.inv_freq,
            hidden_size=loaded.shape.hidden_size,
        )
        self.loader = AdapterLoader(
            self.runner.base,
            dtype=self.runner.dtype,
            device=self.runner.device,
            max_rank=lora.max_lora_rank,
            post=post,
        )
        self.adapters = AdapterCache(
            Arena(self.runner.base, self.runner.sites, self.blocks, self.pool, self._mend_tables),
            self.loader,
            max_loaded=lora.max_loaded_adapters,
            max_host=lora.max_cpu_adapters,
            make_room=lambda num_blocks: self.scheduler.make_room(num_blocks),
            on_failure=self._fail_waiting,
        )
        self.scheduler = Scheduler(
            self.blocks,
            self.memories,
            self.adapters,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
        )
        self.limits = TurnLimits(
            max_positions=loaded.shape.max_positions,
            # One block stays spare: a memory with several readers has its last block copied.
            max_slots=(self.blocks.num_blocks - 1) * self.blocks.block_size,
            max_latent_steps=config.max_latent_steps,
            fingerprint=loaded.fingerprint,
        )
        self._room = AdapterRoom(self.adapters, self.blocks, self.limits)
        self._max_waiting_seqs = config.max_waiting_seqs
        self._post = post
        self._token_texts = TokenTexts(loaded.tokenizer.backend_tokenizer)
        self._counters = Counters()
        self._deadlines = Deadlines(max_rows=config.max_num_batched_tokens)
        self._sequences: dict[int, Sequence] = {}
        self._is_closed = False
        self.num_failures_in_a_row = 0

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    def step(self) -> bool:
        """Compute one step; False if nothing could be scheduled."""
        for missed in self._deadlines.missed(self._sequences.values(), self.scheduler.waiting):
            self.fail([missed.sequence], missed.error)
        scheduled = self.scheduler.schedule()
        if not scheduled:
            return self._fail_stuck()
        for rows in scheduled:
            self._enter(rows.sequence, Phase.PREFILL)
        started_at = time.monotonic()
        try:
            overflown = self.runner.step(scheduled, self.pool)
        except Exception:
            logger.exception("a step of %d sequences failed", len(scheduled))
            self.num_failures_in_a_row += 1
            # What failed is in the log; it may tell of paths and devices, so a client is not told.
            cause = EngineError("the step that computed this request failed. Send it again.")
            self.fail([rows.sequence for rows in scheduled], cause)
            return True
        self.num_failures_in_a_row = 0
        self._deadlines.note_step(time.monotonic() - started_at)
        if overflown:
            self._fail_overflown(overflown)
            scheduled = [rows for rows in scheduled if rows.sequence not in overflown]
        self.scheduler.advance(scheduled)
        self._counters.num_steps += 1
        self._counters.num_rows += sum(rows.num_rows for rows in scheduled)
        for rows in scheduled:
            self._report(rows.sequence)
        return True

    @property
    def earliest_end(self) -> float | None:
        """When the first of those under way ends by its deadline; of ``time.monotonic``."""
        return self._deadlines.earliest(self._sequences.values(), self.scheduler.waiting)

    def add(self, sequence: Sequence) -> None:
        try:
            self._check_admission(sequence)
            self.scheduler.add(sequence)
        except LatentMASError as error:
            self.emit(sequence, error)
            return
        self._sequences[sequence.sequence_id] = sequence

    def _check_admission(self, sequence: Sequence) -> None:
        limit = self._max_waiting_seqs
        if self._is_closed:
            raise LostError("the engine was closed.")
        if len(self.scheduler.waiting) >= limit:
            message = f"{limit} requests wait already; max_waiting_seqs is {limit}. Retry later."
            raise EngineError(message)
        # Once more: it may have been released on the way.
        self.limits.check_memory(sequence.turn)
        self._room.check(sequence)

    def abort(self, sequence: Sequence) -> None:
        if self._sequences.pop(sequence.sequence_id, None) is not None:
            self.scheduler.remove(sequence)
        elif sequence.handed_over is not None:
            self.memories.release(sequence.handed_over)
            sequence.handed_over = None  # a turn may be ended more than once

    def fail(self, sequences: list[Sequence], error: LatentMASError) -> None:
        for sequence in sequences:
            self.emit(sequence, error)
        for sequence in sequences:
            self.abort(sequence)

    def register(self, spec: AdapterSpec, packed: PackedAdapter) -> AdapterSpec:
        """Make an adapter known; raises AdapterError if it cannot be."""
        if spec.is_pinned:
            self.adapters.check_name(spec)
            self._room.check_pin(spec, self._sequences.values())
        return self.adapters.register(spec, packed)

    def _fail_waiting(self, digest: str, error: LatentMASError) -> None:
        """An adapter could not be loaded: nobody waits for it in vain."""
        waiting = [s for s in self.scheduler.waiting if digest in s.mix.digests]
        self.fail(waiting, error)

    def _fail_overflown(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            error = AdapterError(
                f"agent {sequence.turn.agent!r}: with its adapters numbers go beyond what "
                f"{self.runner.dtype} holds. Lower their weights, or use others.",
                param="adapters",
            )
            self.fail([sequence], error)

    def _fail_stuck(self) -> bool:
        """Fail the sequence that no end of another would let in, after its own adapters made way
        for each other; False if there is none."""
        stuck = self.scheduler.stuck
        if stuck is None or self.scheduler.running or self.adapters.num_loading:
            return False
        if not stuck.was_given_all_room:
            stuck.was_given_all_room = True
            if self.adapters.evict_members(stuck.mix):
                return True
        self.fail([stuck], self._room.error_of_stuck(stuck))
        return True

    def _mend_tables(self, moves: Mapping[int, int]) -> None:
        """Blocks have moved: all tables that name them."""
        for table in self._block_tables():
            table[:] = [moves.get(block_id, block_id) for block_id in table]

    def _block_tables(self) -> Iterator[list[int]]:
        for sequence in self.scheduler.running:
            yield sequence.block_table
        for sequence in self.scheduler.suspended:
            yield sequence.block_table
        yield from self.memories.block_tables()

    def _report(self, sequence: Sequence) -> None:
        """Emit what the last step brought, and end the turn if it was the last."""
        if sequence.num_executed_steps:
            self._enter(sequence, Phase.THINKING)
        for reading in sequence.new_readings:
            sequence.num_reported_readings += 1
            self.emit(sequence, Thought(sequence.num_reported_readings, reading))
        if sequence.has_thought and not sequence.has_reported_thought:
            sequence.has_reported_thought = True
            self._counters.num_latent_steps += sequence.num_executed_steps
            if sequence.num_executed_steps and not sequence.turn.has_lens:
                self.emit(sequence, Thought(sequence.num_executed_steps))
        if sequence.num_reported_outputs < len(sequence.output_ids):
            self._enter(sequence, Phase.SPEAKING)
            self._report_token(sequence)
        elif sequence.next_row is NextRow.NOTHING and sequence.num_uncomputed == 0:
            self._finish(sequence, "thought")

    def _enter(self, sequence: Sequence, phase: Phase) -> None:
        if sequence.clock.enter(phase) and sequence.turn.tells_phases:
            self.emit(sequence, PhaseBegun(phase))

    def _report_token(self, sequence: Sequence) -> None:
        sampling = sequence.turn.sampling
        assert sampling is not None, f"{sequence} has a token but does not speak"
        if sequence.output_ids[-1] in self.eos_token_ids and not sampling.ignore_eos:
            sequence.output_ids.pop()
            del sequence.logprobs[len(sequence.output_ids) :]
            self._finish(sequence, "stop")
            return
        sequence.num_reported_outputs += 1
        self._counters.num_tokens += 1
        self._emit_text(sequence, sequence.detokenizer.append(sequence.output_ids[-1]))
        if sequence.detokenizer.has_stopped:
            self._finish(sequence, "stop")
        elif len(sequence.output_ids) == sampling.max_tokens:
            self._finish(sequence, "length")

    def _finish(self, sequence: Sequence, reason: str) -> None:
        self._emit_text(sequence, sequence.detokenizer.finish())
        logprobs = sequence.logprobs[: sequence.detokenizer.num_tokens]
        keeps_memory = sequence.turn.keeps_memory
        if keeps_memory:
            segment = sequence.as_segment(self.fingerprint)
            sequence.handed_over = self.memories.adopt(sequence, segment)
        self._counters.num_cached_tokens += sequence.num_cached_tokens
        self.scheduler.remove(sequence, keeps_tail=keeps_memory)
        del self._sequences[sequence.sequence_id]
        done = TurnDone(
            memory=sequence.handed_over,
            num_prompt_tokens=len(sequence.token_ids),
            num_cached_tokens=sequence.num_cached_tokens,
            num_latent_steps=sequence.num_executed_steps,
            output_ids=tuple(sequence.output_ids),
            text=sequence.detokenizer.text,
            finish_reason=reason,
            num_preemptions=sequence.num_preemptions,
            logprobs=None if sequence.num_top_logprobs is None else self._described(logprobs),
            phase_s=sequence.clock.stop(),
        )
        self.emit(sequence, done)

    def _emit_text(self, sequence: Sequence, text: str) -> None:
        tokens = self._new_tokens(sequence)
        if text or tokens:
            self.emit(sequence, TextDelta(text, tokens))

    def _new_tokens(self, sequence: Sequence) -> tuple[AnswerToken, ...]:
        """Where they are asked for: those that the text holds and that were not reported yet."""
        if sequence.num_top_logprobs is None:
            return ()
        end = sequence.detokenizer.num_tokens
        new = sequence.logprobs[sequence.num_reported_logprobs : end]
        sequence.num_reported_logprobs += len(new)
        return self._described(new)

    def _described(self, rows: Iterable[RowLogprobs]) -> tuple[AnswerToken, ...]:
        return tuple(self._token_texts.describe(row) for row in rows)

    def emit(self, sequence: Sequence, event: TurnEvent | LatentMASError) -> None:
        try:
            sequence.sink(event)
        except RuntimeError:  # the receiver's event loop is closed: nobody will ever ask again
            logger.warning("%r lost its receiver", sequence)
            self._post(lambda: self.abort(sequence))

    def close(self, error: LatentMASError) -> None:
        """End all turns with ``error`` and refuse later ones."""
        self._is_closed = True
        self.fail(list(self._sequences.values()), error)
        self.loader.close()

    def stats(self) -> EngineStats:
        counters = self._counters
        return EngineStats(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            num_memories=len(self.memories),
            num_blocks=self.blocks.num_blocks,
            num_used_blocks=self.blocks.num_used,
            num_cached_blocks=self.blocks.num_cached,
            block_size=self.blocks.block_size,
            num_steps_total=counters.num_steps,
            num_rows_total=counters.num_rows,
            num_tokens_total=counters.num_tokens,
            num_latent_steps_total=counters.num_latent_steps,
            num_cached_tokens_total=counters.num_cached_tokens,
            num_preemptions_total=self.scheduler.num_preemptions,
            num_suspensions_total=self.scheduler.num_suspensions,
            num_offloads_total=self.memories.num_offloads,
            adapters=self.adapters.stats(),
        )

    def check_integrity(self, held: Iterable[AdapterMix] = ()) -> None:
        """``held``: what answers keep known between their turns."""
        running, waiting = self.scheduler.running, self.scheduler.waiting
        num_refs = sum(len(table) for table in self._block_tables()) + self.adapters.num_blocks
        self.blocks.check_integrity(num_refs)
        self.memories.check_integrity()
        waiting.check_integrity(running)
        self.adapters.check_integrity([s.mix for s in running], [*(s.mix for s in waiting), *held])


def _make_pool(config: EngineConfig, runner: ModelRunner) -> tuple[BlockManager, Pool]:
    block_size = choose_block_size(config, is_paged=runner.is_paged)
    num_blocks = choose_num_blocks(config, runner.shape, block_size, runner.dtype, runner.shards)
    pool = make_pool(
        runner.shape,
        runner.shards,
        num_blocks=num_blocks,
        block_size=block_size,
        dtype=runner.dtype,
    )
    return BlockManager(num_blocks, block_size), pool
