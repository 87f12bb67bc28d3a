"""Packs segments for the wire: a small header and ONE contiguous tensor; unpacks without copying.

Layout of the buffer, segment after segment: keys, values (left out where the receiver prefills
again), latents, each contiguous in the model's dtype. The views that come out share the buffer,
which other readers may share too: never write to them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from latentmas_core.errors import SegmentError
from latentmas_core.latent.segment import KVRows, Segment, SegmentTensors


@dataclass(frozen=True)
class KVLayout:
    """Sizes that turn a flat buffer back into tensors."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int

    def num_elements(self, segment: Segment, *, has_kv: bool) -> int:
        num_kv = 2 * self.num_layers * segment.num_rows * self.num_kv_heads * self.head_dim
        return (num_kv if has_kv else 0) + segment.num_latents * self.hidden_size


@dataclass(frozen=True)
class PackedSegments:
    """Segments and their content. buffer: [num_elements] in the model's dtype, on the CPU."""

    segments: tuple[Segment, ...]
    layout: KVLayout
    has_kv: bool
    buffer: torch.Tensor

    @property
    def num_bytes(self) -> int:
        return self.buffer.numel() * self.buffer.dtype.itemsize


# [num_bytes] of uint8, filled with anything.
TakeBuffer = Callable[[int], torch.Tensor]

# Writes what a segment holds into tensors of the right shapes, so that it is copied only once.
Fill = Callable[[Segment, SegmentTensors], None]


def take_fresh(num_bytes: int) -> torch.Tensor:
    """A buffer that nobody has used before. [num_bytes], uint8"""
    return torch.empty(num_bytes, dtype=torch.uint8)


def pack(
    segments: Sequence[Segment],
    fill: Fill,
    layout: KVLayout,
    *,
    dtype: torch.dtype,
    has_kv: bool = True,
    take: TakeBuffer = take_fresh,
) -> PackedSegments:
    """A buffer of ``take``, filled segment by segment. ``has_kv=False``: no keys and values."""
    num_elements = sum(layout.num_elements(segment, has_kv=has_kv) for segment in segments)
    buffer = take(num_elements * dtype.itemsize).view(dtype)
    packed = PackedSegments(tuple(segments), layout, has_kv, buffer)
    for segment, content in zip(segments, unpack(packed).values(), strict=True):
        fill(segment, content)
    return packed


def unpack(packed: PackedSegments) -> dict[str, SegmentTensors]:
    """The content by segment id, as views of the buffer. SegmentError if the sizes do not fit."""
    layout = packed.layout
    expected = sum(layout.num_elements(s, has_kv=packed.has_kv) for s in packed.segments)
    if packed.buffer.numel() != expected:
        raise SegmentError(
            f"buffer has {packed.buffer.numel()} elements; {len(packed.segments)} segment(s) with "
            f"{layout} need {expected}. The transfer was cut or the header is another's.",
            param="memory",
        )
    contents: dict[str, SegmentTensors] = {}
    rest = packed.buffer
    for segment in packed.segments:
        size = layout.num_elements(segment, has_kv=packed.has_kv)
        contents[segment.segment_id] = _content(rest[:size], segment, layout, packed.has_kv)
        rest = rest[size:]
    return contents


def _content(
    flat: torch.Tensor, segment: Segment, layout: KVLayout, has_kv: bool
) -> SegmentTensors:
    num_latent_elements = segment.num_latents * layout.hidden_size
    latents = flat[flat.numel() - num_latent_elements :]
    latents = latents.view(segment.num_latents, layout.hidden_size)
    if not has_kv:
        return SegmentTensors(latents)
    size = (2, layout.num_layers, segment.num_rows, layout.num_kv_heads, layout.head_dim)
    keys, values = flat[: flat.numel() - num_latent_elements].view(size)
    return SegmentTensors(latents, KVRows(keys, values))
