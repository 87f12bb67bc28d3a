"""A thread that steps and an asyncio face in front of it.

Owns the model, the blocks and every sequence. The thread is the only one that touches them; others
post commands to its inbox and receive events. Whatever way a turn ends, its blocks come back.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import closing
from types import TracebackType

import torch

from latentmas_core.config import EngineConfig
from latentmas_core.engine.block_manager import BlockManager, prefix_keys
from latentmas_core.engine.detokenizer import Detokenizer
from latentmas_core.engine.inbox import Inbox
from latentmas_core.engine.kv_pool import KVPool
from latentmas_core.engine.limits import TurnLimits
from latentmas_core.engine.memory_store import MemoryStore
from latentmas_core.engine.model_loader import (
    LoadedModel,
    load_model,
    resolve_device,
    resolve_dtype,
)
from latentmas_core.engine.model_runner import ModelRunner
from latentmas_core.engine.pool_size import choose_block_size, choose_num_blocks
from latentmas_core.engine.reprefill import prefill_memory
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.scheduler import Scheduler
from latentmas_core.engine.sequence import EventSink, NextRow
from latentmas_core.engine.sequence import Sequence as EngineSequence
from latentmas_core.engine.stats import Counters, EngineStats
from latentmas_core.engine.turn import TextDelta, Thought, Turn, TurnDone, TurnEvent
from latentmas_core.errors import EngineError, LatentMASError
from latentmas_core.latent.codec import KVLayout, PackedSegments, pack
from latentmas_core.latent.memory import Memory, MergeRule, check_same_model, merge
from latentmas_core.latent.segment import Segment, SegmentTensors

logger = logging.getLogger(__name__)


class Engine:
    """Runs turns of agents, many at a time, over one model.

    ``run`` and the coroutines may be awaited from any event loop. Use it as a context manager, or
    call ``close``.
    """

    def __init__(self, config: EngineConfig, loaded: LoadedModel | None = None) -> None:
        self.config = config
        self._counters = Counters()
        self._sequences: dict[int, EngineSequence] = {}
        self._inbox = Inbox()
        self._is_closed = False
        # All torch work is done on this one thread, from loading on: a second thread would have an
        # OpenMP team of its own, and teams that outnumber the cores slow every step of each other.
        self._thread = threading.Thread(target=self._loop, name="latentmas-engine", daemon=True)
        self._thread.start()
        try:
            self._inbox.call_and_wait(lambda: self._set_up(loaded or _load(config)))
        except BaseException:
            self.close()
            raise

    def _set_up(self, loaded: LoadedModel) -> None:
        config = self.config
        self.model_name = loaded.name
        self.dtype = loaded.model.dtype
        self.fingerprint = loaded.fingerprint
        self.shape = loaded.shape
        self.tokenizer = loaded.tokenizer
        self._eos_token_ids = loaded.eos_token_ids
        self._runner = ModelRunner(loaded, is_realigned=config.latent_realign)
        self.blocks, self.pool = _make_pool(config, self._runner)
        self.memories = MemoryStore(
            self.blocks,
            self.pool,
            inv_freq=self._runner.inv_freq,
            hidden_size=loaded.shape.hidden_size,
        )
        self.scheduler = Scheduler(
            self.blocks,
            self.memories,
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
    def is_running(self) -> bool:
        return self._thread.is_alive() and not self._is_closed

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
        self._inbox.post(lambda: self._add(sequence))
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
                self._inbox.post(lambda: self._abort(sequence))

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
            lambda: self.memories.assemble(target, sources), undo=self.memories.release
        )

    async def prefill_memory(
        self, memory: Memory, latents: Mapping[str, torch.Tensor]
    ) -> ResidentMemory:
        """A new memory, computed again from tokens and latents (hand-off ``embeddings``)."""
        check_same_model(memory.segments, self.fingerprint)
        return await prefill_memory(self, memory, latents)

    async def export(
        self, memory: ResidentMemory, segments: Sequence[Segment]
    ) -> list[SegmentTensors]:
        """Copies of what some segments of a memory hold, on the engine's device."""
        return await self._inbox.call(lambda: self.memories.export(memory, segments))

    async def pack(
        self, memory: ResidentMemory, segments: Sequence[Segment], *, has_kv: bool = True
    ) -> PackedSegments:
        """Some segments of a memory in one buffer, ready for the wire."""
        return await self._inbox.call(lambda: self._pack(memory, segments, has_kv=has_kv))

    async def load(self, memory: Memory, tensors: Mapping[str, SegmentTensors]) -> ResidentMemory:
        """A memory from the content of its segments; takes blocks when it is first read."""
        check_same_model(memory.segments, self.fingerprint)
        return await self._inbox.call(
            lambda: self.memories.load(memory, tensors), undo=self.memories.release
        )

    async def release(self, memory: ResidentMemory) -> None:
        """Give a memory back. Does not wait, so it is safe while being cancelled."""
        self._inbox.post(lambda: self.memories.release(memory))

    async def stats(self) -> EngineStats:
        """What the engine holds and has done, between two steps."""
        return await self._inbox.call(self._stats)

    async def check_integrity(self) -> None:
        """Raise AssertionError if any count of blocks or references does not add up."""
        await self._inbox.call(self._check_integrity)

    # Everything below runs on the engine's thread.

    def _loop(self) -> None:
        if self.config.num_threads is not None:
            torch.set_num_threads(self.config.num_threads)
        end = EngineError("the engine was closed.")
        # Whatever happens, nobody waits for an answer that never comes.
        with closing(self._inbox):
            try:
                self._step_until_closed()
            except Exception as error:
                logger.exception("the engine ends: its counts cannot be trusted any more")
                end = EngineError(f"the engine failed and is closed: {error}. Start it again.")
            self._is_closed = True
            self._fail(list(self._sequences.values()), end)

    def _step_until_closed(self) -> None:
        can_step = False
        while True:
            self._inbox.run_commands(is_blocking=not can_step)
            if self._is_closed:
                return
            can_step = bool(self._sequences) and self._step()

    def _stop(self) -> None:
        self._is_closed = True

    def _step(self) -> bool:
        """Compute one step; False if nothing could be scheduled."""
        scheduled = self.scheduler.schedule()
        if not scheduled:
            return False
        try:
            self._runner.step(scheduled, self.pool)
        except Exception as error:
            logger.exception("a step of %d sequences failed", len(scheduled))
            cause = f"the step that computed this request failed: {error}. Send it again."
            self._fail([rows.sequence for rows in scheduled], EngineError(cause))
            return True
        self.scheduler.advance(scheduled)
        self._counters.num_steps += 1
        self._counters.num_rows += sum(rows.num_rows for rows in scheduled)
        for rows in scheduled:
            self._report(rows.sequence)
        return True

    def _add(self, sequence: EngineSequence) -> None:
        try:
            self._check_admission(sequence.turn)
        except LatentMASError as error:
            self._emit(sequence, error)
            return
        self._sequences[sequence.sequence_id] = sequence
        self.scheduler.add(sequence)

    def _check_admission(self, turn: Turn) -> None:
        limit = self.config.max_waiting_seqs
        if self._is_closed:
            raise EngineError("the engine was closed.")
        if len(self.scheduler.waiting) >= limit:
            message = f"{limit} requests wait already; max_waiting_seqs is {limit}. Retry later."
            raise EngineError(message)
        self.limits.check_memory(turn)  # once more: it may have been released on the way

    def _abort(self, sequence: EngineSequence) -> None:
        if self._sequences.pop(sequence.sequence_id, None) is not None:
            self.scheduler.remove(sequence)
        elif sequence.handed_over is not None:
            self.memories.release(sequence.handed_over)
            sequence.handed_over = None  # a turn may be ended more than once

    def _fail(self, sequences: list[EngineSequence], error: LatentMASError) -> None:
        for sequence in sequences:
            self._emit(sequence, error)
        for sequence in sequences:
            self._abort(sequence)

    def _report(self, sequence: EngineSequence) -> None:
        """Emit what the last step brought, and end the turn if it was the last."""
        if sequence.has_thought and not sequence.has_reported_thought:
            sequence.has_reported_thought = True
            self._counters.num_latent_steps += sequence.num_executed_steps
            if sequence.num_executed_steps:
                self._emit(sequence, Thought(sequence.num_executed_steps))
        if sequence.num_reported_outputs < len(sequence.output_ids):
            self._report_token(sequence)
        elif sequence.next_row is NextRow.NOTHING and sequence.num_uncomputed == 0:
            self._finish(sequence, "thought")

    def _report_token(self, sequence: EngineSequence) -> None:
        sampling = sequence.turn.sampling
        assert sampling is not None, f"{sequence} has a token but does not speak"
        if sequence.output_ids[-1] in self._eos_token_ids and not sampling.ignore_eos:
            sequence.output_ids.pop()
            self._finish(sequence, "stop")
            return
        sequence.num_reported_outputs += 1
        self._counters.num_tokens += 1
        self._emit_text(sequence, sequence.detokenizer.append(sequence.output_ids[-1]))
        if sequence.detokenizer.has_stopped:
            self._finish(sequence, "stop")
        elif len(sequence.output_ids) == sampling.max_tokens:
            self._finish(sequence, "length")

    def _finish(self, sequence: EngineSequence, reason: str) -> None:
        self._emit_text(sequence, sequence.detokenizer.finish())
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
        )
        self._emit(sequence, done)

    def _pack(
        self, memory: ResidentMemory, segments: Sequence[Segment], *, has_kv: bool
    ) -> PackedSegments:
        shape = self.shape
        return pack(
            segments,
            self.memories.export(memory, segments, has_kv=has_kv),
            KVLayout(shape.num_layers, shape.num_kv_heads, shape.head_dim, shape.hidden_size),
            dtype=self.dtype,
            has_kv=has_kv,
        )

    def _emit_text(self, sequence: EngineSequence, text: str) -> None:
        if text:
            self._emit(sequence, TextDelta(text))

    def _emit(self, sequence: EngineSequence, event: TurnEvent | LatentMASError) -> None:
        try:
            sequence.sink(event)
        except RuntimeError:  # the receiver's event loop is closed: nobody will ever ask again
            logger.warning("%r lost its receiver", sequence)
            self._inbox.post(lambda: self._abort(sequence))

    def _make_sequence(self, turn: Turn, sink: EventSink) -> EngineSequence:
        has_keys = self.config.has_prefix_cache and turn.memory is None and turn.recall is None
        keys = prefix_keys(self.fingerprint, turn.prompt_ids, self.blocks.block_size)
        stop = turn.sampling.stop if turn.sampling else ()
        return EngineSequence(
            turn,
            sink=sink,
            detokenizer=Detokenizer(self.tokenizer.backend_tokenizer, stop),
            prefix_keys=keys if has_keys else [],
        )

    def _stats(self) -> EngineStats:
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
            num_offloads_total=self.memories.num_offloads,
        )

    def _check_integrity(self) -> None:
        num_refs = sum(len(sequence.block_table) for sequence in self.scheduler.running)
        self.blocks.check_integrity(num_refs + self.memories.num_block_refs)
        self.memories.check_integrity()


def _deliver(
    loop: asyncio.AbstractEventLoop,
    events: "asyncio.Queue[TurnEvent | LatentMASError]",
    event: TurnEvent | LatentMASError,
) -> None:
    loop.call_soon_threadsafe(events.put_nowait, event)


def _load(config: EngineConfig) -> LoadedModel:
    device = resolve_device(config.device)
    return load_model(config.model_name, device=device, dtype=resolve_dtype(config.dtype, device))


def _make_pool(config: EngineConfig, runner: ModelRunner) -> tuple[BlockManager, KVPool]:
    block_size = choose_block_size(config, is_paged=runner.is_paged)
    num_blocks = choose_num_blocks(config, runner.shape, block_size, runner.dtype, runner.device)
    pool = KVPool(
        runner.shape,
        num_blocks=num_blocks,
        block_size=block_size,
        dtype=runner.dtype,
        device=runner.device,
    )
    return BlockManager(num_blocks, block_size), pool
