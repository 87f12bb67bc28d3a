"""A memory that lives in an engine: in KV blocks, or staged outside them when blocks are short."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from latentmas_core.latent.memory import Memory, Placement
from latentmas_core.latent.segment import KVRows, Segment


@dataclass(eq=False)
class ResidentMemory:
    """A handle on rows that one engine holds; only that engine's thread changes it.

    The rows of ``memory`` stand in the slots 0 .. num_rows - 1 of ``block_table``, in order; while
    ``block_table`` is None they wait in ``staged``. A memory that was sent without keys and values
    has neither: it must be prefilled again before it is read. ``latents`` maps a segment's id to
    the input embeddings of its latent steps [num_latents, hidden_size].

    The slots behind the last row of the last block are empty, so ONE reader may append there
    without copying: the one that set ``has_appender``. All others copy that block.

    ``num_pins`` counts the turns that read it or will: a released memory lives until the last of
    them has ended. ``num_readers`` counts those that run.
    """

    memory: Memory
    latents: Mapping[str, torch.Tensor]
    block_table: list[int] | None = None
    staged: KVRows | None = None
    num_pins: int = 0
    num_readers: int = 0
    has_appender: bool = False
    is_released: bool = False

    @property
    def num_rows(self) -> int:
        return self.memory.num_rows

    @property
    def has_rows(self) -> bool:
        """Whether keys and values are here, so that it can be read."""
        return self.block_table is not None or self.staged is not None

    def holds(self, segment: Segment) -> bool:
        """Whether the rows of ``segment`` are here, maybe as part of a whole thought."""
        return any(_covers(placement.segment, segment) for placement in self.memory.placements)

    def locate(self, segment: Segment) -> tuple[int, Placement]:
        """The first row of ``segment`` in this memory, and the placement it belongs to."""
        start = 0
        for placement in self.memory.placements:
            if _covers(placement.segment, segment):
                return start + segment.first_position - placement.segment.first_position, placement
            start += placement.segment.num_rows
        raise AssertionError(f"segment {segment.segment_id} is not in {self.memory.segment_ids}")

    def latents_of(self, segment: Segment) -> torch.Tensor:
        """The input embeddings of the segment's latent steps [num_latents, hidden_size]."""
        _, placement = self.locate(segment)
        return self.latents[placement.segment.segment_id]


def _covers(whole: Segment, part: Segment) -> bool:
    return part.segment_id in (whole.segment_id, whole.latents_id)
