"""What one agent leaves behind: a segment, described without its tensors.

Owns the immutable description and the shapes of its content. Knows nothing of blocks, engines or
wires: an engine keeps keys and values in blocks, ``SegmentTensors`` are what leaves it.
"""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import torch

from latentmas_core.errors import SegmentError

BASE_ADAPTER = "base"
NUM_ID_CHARS = 32


def new_segment_id() -> str:
    """Unique over all replicas."""
    return uuid.uuid4().hex


def latents_id_of(segment_id: str) -> str:
    """The id that a thought has without its prompt."""
    return f"{segment_id}/latents"


class Seen(NamedTuple):
    """A segment that was attended to, and how far its rows had been moved from their origin."""

    segment_id: str
    shift: int


@dataclass(frozen=True)
class Segment:
    """A run of rows that one agent computed: its prompt tokens, then its latent steps.

    Row ``i`` stands at rotary position ``first_position + i`` of the sequence that computed it, and
    attended to the segments named in ``context``, in that order, and to the rows before it.
    """

    agent: str
    fingerprint: str
    first_position: int
    token_ids: tuple[int, ...]
    num_latents: int
    context: tuple[Seen, ...] = ()
    adapter: str = BASE_ADAPTER
    segment_id: str = field(default_factory=new_segment_id)

    def __post_init__(self) -> None:
        if self.num_rows == 0:
            raise SegmentError(f"segment of agent {self.agent!r} has no rows; it needs at least 1.")

    def as_computed(self) -> Self:
        """The same with an id that follows from what it was computed from.

        Thinking draws no numbers, so a thought that is computed again, where its rows were lost, is
        the same thought for whoever reads both.
        """
        description = (
            self.agent,
            self.fingerprint,
            self.first_position,
            self.token_ids,
            self.num_latents,
            self.context,
            self.adapter,
        )
        digest = hashlib.sha256(repr(description).encode()).hexdigest()
        return replace(self, segment_id=digest[:NUM_ID_CHARS])

    @property
    def num_rows(self) -> int:
        return len(self.token_ids) + self.num_latents

    @property
    def end_position(self) -> int:
        """The first position behind this segment."""
        return self.first_position + self.num_rows

    @property
    def latents_id(self) -> str:
        """The id of this thought without its prompt."""
        return self.segment_id if not self.token_ids else latents_id_of(self.segment_id)

    def latents_only(self) -> "Segment":
        """The same thought without its prompt; the latents keep their positions."""
        if not self.token_ids:
            return self
        if self.num_latents == 0:
            raise SegmentError(
                f"agent {self.agent!r} took 0 latent steps, so carry='latents' leaves nothing to "
                "hand over. Use latent_steps >= 1 or carry='all'.",
                param="carry",
            )
        return replace(
            self,
            first_position=self.first_position + len(self.token_ids),
            token_ids=(),
            segment_id=self.latents_id,
        )


@dataclass(frozen=True)
class KVRows:
    """Keys and values of a run of rows: [num_layers, num_rows, num_kv_heads, head_dim] each."""

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def num_rows(self) -> int:
        return self.keys.shape[1]

    def select(self, start: int, end: int) -> "KVRows":
        return KVRows(self.keys[:, start:end], self.values[:, start:end])

    def to(self, device: torch.device) -> "KVRows":
        return KVRows(self.keys.to(device), self.values.to(device))

    @staticmethod
    def concatenate(runs: Sequence["KVRows"]) -> "KVRows":
        if len(runs) == 1:
            return runs[0]
        return KVRows(
            torch.cat([run.keys for run in runs], dim=1),
            torch.cat([run.values for run in runs], dim=1),
        )


@dataclass(frozen=True)
class SegmentTensors:
    """The content of a segment outside an engine.

    latents: [num_latents, hidden_size], the input embeddings of the latent steps. kv: keys rotated
    to the positions of the segment, and values; None where the receiver prefills again.
    """

    latents: torch.Tensor
    kv: KVRows | None = None
