"""Computes a memory again from its tokens and latent vectors: the hand-off ``embeddings``.

Each segment is prefilled behind the segments it had attended to, so parallel experts do not see
each other here either. A chain costs no copies: every turn simply appends to the one before.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.turn import Recall, Turn, TurnDone
from latentmas_core.latent.memory import Memory, Placement
from latentmas_core.latent.segment import Segment, latents_id_of


class MemoryEngine(Protocol):
    """What is needed of an engine."""

    async def complete(self, turn: Turn) -> TurnDone: ...
    async def assemble(
        self, target: Memory, sources: Sequence[ResidentMemory]
    ) -> ResidentMemory: ...
    async def release(self, memory: ResidentMemory) -> None: ...


async def prefill_memory(
    engine: MemoryEngine, memory: Memory, latents: Mapping[str, torch.Tensor]
) -> ResidentMemory:
    """``latents``: by segment id, [num_latents, hidden_size] each."""
    segments = {segment.segment_id: segment for segment in memory.segments}
    built: list[ResidentMemory] = []
    try:
        for segment in memory.segments:
            context = _context_of(segment, segments)
            reader = await _find_or_assemble(engine, context, built)
            recall = Recall(segment, latents[segment.segment_id])
            done = await engine.complete(
                Turn(segment.agent, memory=reader, keeps_memory=True, recall=recall)
            )
            assert done.memory is not None, "a turn that keeps its memory hands it over"
            built.append(done.memory)
        result = await _find_or_assemble(engine, memory, built)
        assert result is not None, "a memory to prefill has segments"
        built.remove(result)
        return result
    finally:
        for unused in built:
            await engine.release(unused)


async def _find_or_assemble(
    engine: MemoryEngine, memory: Memory, built: list[ResidentMemory]
) -> ResidentMemory | None:
    """The built memory with exactly these rows; where there is none, it is assembled and built."""
    if not memory.placements:
        return None
    for candidate in built:
        if candidate.memory.seen == memory.seen:
            return candidate
    assembled = await engine.assemble(memory, built)
    built.append(assembled)
    return assembled


def _context_of(segment: Segment, segments: Mapping[str, Segment]) -> Memory:
    """What ``segment`` attended to, as far as it was handed over: whole, or its latents alone."""
    placements = []
    for seen_id, shift in segment.context:
        seen = segments.get(seen_id) or segments.get(latents_id_of(seen_id))
        if seen is not None:
            placements.append(Placement(seen, shift))
    return Memory(tuple(placements))
