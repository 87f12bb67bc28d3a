"""What an agent reads before its own prompt: segments and the rule that joins them.

Pure descriptions, no tensors. ``chain`` lets positions follow on; ``merge`` puts the memories of
parallel experts side by side: positions reused (default, no order bias) or consecutive, by exact
re-rotation of whole self-contained memories.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from latentmas_core.errors import SegmentError
from latentmas_core.latent.merge_rule import MergeRule
from latentmas_core.latent.segment import Seen, Segment


@dataclass(frozen=True)
class Placement:
    """A segment, read ``shift`` positions behind the place where it was computed."""

    segment: Segment
    shift: int = 0

    @property
    def end_position(self) -> int:
        return self.segment.end_position + self.shift


@dataclass(frozen=True)
class Memory:
    """An ordered run of placed segments; slot order is attention order."""

    placements: tuple[Placement, ...] = ()

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(placement.segment for placement in self.placements)

    @property
    def segment_ids(self) -> tuple[str, ...]:
        return tuple(segment.segment_id for segment in self.segments)

    @property
    def seen(self) -> tuple[Seen, ...]:
        """This memory as the context of a segment that is computed behind it."""
        return tuple(Seen(p.segment.segment_id, p.shift) for p in self.placements)

    @property
    def num_rows(self) -> int:
        return sum(segment.num_rows for segment in self.segments)

    @property
    def next_position(self) -> int:
        """Where the reader's own prompt begins."""
        return max((placement.end_position for placement in self.placements), default=0)

    def followed_by(self, segment: Segment) -> "Memory":
        """The chain rule: a segment that was computed behind exactly this memory."""
        return Memory((*self.placements, Placement(segment)))

    def latents_only(self) -> "Memory":
        """This memory with every segment's prompt rows left out."""
        return Memory(tuple(Placement(p.segment.latents_only(), p.shift) for p in self.placements))


def merge(memories: Sequence[Memory], rule: MergeRule = MergeRule.REUSED) -> Memory:
    """Join the memories of parallel agents; one memory is returned as it is.

    Raises SegmentError if they come from different models, or if ``consecutive`` is asked for
    memories that share a segment: what attended to the shared part cannot be moved away from it.
    """
    check_same_model([segment for memory in memories for segment in memory.segments])
    if len(memories) == 1:
        return memories[0]
    if rule is MergeRule.CONSECUTIVE:
        return _merge_consecutive(memories)
    return _merge_reused(memories)


def check_same_model(segments: Sequence[Segment], fingerprint: str | None = None) -> None:
    """Raise SegmentError unless all segments were made by one model (``fingerprint`` if given)."""
    expected = fingerprint or (segments[0].fingerprint if segments else None)
    for segment in segments:
        if segment.fingerprint != expected:
            raise SegmentError(
                f"segment of agent {segment.agent!r} was made by model {segment.fingerprint}, "
                f"this memory needs {expected}. Let all groups of a pipeline load the same model, "
                "dtype and quantization, or use handoff='text'.",
                param="memory",
            )


def _merge_reused(memories: Sequence[Memory]) -> Memory:
    placed: dict[str, Placement] = {}
    for placement in (placement for memory in memories for placement in memory.placements):
        known = placed.setdefault(placement.segment.segment_id, placement)
        if known.shift != placement.shift:
            raise SegmentError(
                f"segment of agent {placement.segment.agent!r} is placed twice, shifted by "
                f"{known.shift} and by {placement.shift}. Merge with rule 'reused' throughout.",
                param="merge",
            )
    return Memory(tuple(placed.values()))


def _merge_consecutive(memories: Sequence[Memory]) -> Memory:
    seen: set[str] = set()
    placements: list[Placement] = []
    offset = 0
    for memory in memories:
        shared = seen.intersection(memory.segment_ids)
        if shared:
            raise SegmentError(
                "merge='consecutive' needs self-contained memories, but the experts share "
                f"{len(shared)} segment(s) of a common ancestor. Use merge='reused'.",
                param="merge",
            )
        seen.update(memory.segment_ids)
        placements += [Placement(p.segment, p.shift + offset) for p in memory.placements]
        offset += memory.next_position
    return Memory(tuple(placements))
