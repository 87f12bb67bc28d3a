"""Packed segments in 8 bits for the wire, and back: about half the bytes of bfloat16.

Layout of the buffer: the latents of all segments in the model's dtype, then the scales and middles
of all, then all codes, so that each part is aligned. Latents stay as they are: they are few, and
whoever prefills again from them repeats every rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from latentmas_core.errors import SegmentError
from latentmas_core.latent.codec import KVLayout, PackedSegments, TakeBuffer, take_fresh, unpack
from latentmas_core.latent.int8_rows import SCALE_DTYPE, Int8Codes, dequantise, quantise
from latentmas_core.latent.segment import KVRows, Segment, SegmentTensors

_ROWS = 1  # of [num_layers, num_rows, num_kv_heads, head_dim]
_CHANNELS = 3


@dataclass(frozen=True)
class Int8Segments:
    """Segments and their content. buffer: [num_bytes] of uint8; ``dtype`` is the model's."""

    segments: tuple[Segment, ...]
    layout: KVLayout
    dtype: torch.dtype
    buffer: torch.Tensor

    @property
    def num_bytes(self) -> int:
        return self.buffer.numel()


@dataclass(frozen=True)
class _Part:
    """Views of one segment in the buffer."""

    segment: Segment
    latents: torch.Tensor
    keys: Int8Codes
    values: Int8Codes


def to_int8(packed: PackedSegments, take: TakeBuffer = take_fresh) -> Int8Segments:
    """A second buffer, of ``take``. SegmentError for numbers that are not finite."""
    buffer = take(_num_bytes(packed.segments, packed.layout, packed.buffer.dtype))
    made = Int8Segments(packed.segments, packed.layout, packed.buffer.dtype, buffer)
    contents = unpack(packed)
    for part in _parts(made):
        content = contents[part.segment.segment_id]
        if content.kv is None:
            raise SegmentError(
                f"segment of agent {part.segment.agent!r} is packed without keys and values, which "
                "leaves nothing for int8. Pack it with has_kv, or keep the model's dtype.",
                param="transfer_dtype",
            )
        part.latents.copy_(content.latents)
        agent = part.segment.agent
        _write(part.keys, quantise(content.kv.keys, dim=_ROWS, what=f"keys of {agent!r}"))
        _write(part.values, quantise(content.kv.values, dim=_CHANNELS, what=f"values of {agent!r}"))
    return made


def from_int8(packed: Int8Segments) -> dict[str, SegmentTensors]:
    """The content by segment id, in the model's dtype.

    SegmentError if the sizes do not fit or a scale or middle is not finite.
    """
    expected = _num_bytes(packed.segments, packed.layout, packed.dtype)
    if packed.num_bytes != expected:
        raise SegmentError(
            f"int8 buffer has {packed.num_bytes} bytes; {len(packed.segments)} segment(s) with "
            f"{packed.layout} in {packed.dtype} need {expected}. The transfer was cut or the "
            "header is another's.",
            param="memory",
        )
    return {part.segment.segment_id: _content(part, packed.dtype) for part in _parts(packed)}


def _content(part: _Part, dtype: torch.dtype) -> SegmentTensors:
    for name, codes in (("keys", part.keys), ("values", part.values)):
        if not bool((codes.scales.isfinite() & codes.middles.isfinite()).all()):
            raise SegmentError(
                f"{name} of agent {part.segment.agent!r} came with scales that are not finite, "
                "which no sender writes. The transfer was damaged; send the request again.",
                param="memory",
            )
    return SegmentTensors(
        part.latents, KVRows(dequantise(part.keys, dtype), dequantise(part.values, dtype))
    )


def _parts(packed: Int8Segments) -> Iterator[_Part]:
    layout, segments = packed.layout, packed.segments
    num_latents = sum(s.num_latents for s in segments) * layout.hidden_size * packed.dtype.itemsize
    num_ranges = sum(sum(_num_ranges(s, layout)) for s in segments)
    codes_at = num_latents + 2 * num_ranges * SCALE_DTYPE.itemsize
    latents = packed.buffer[:num_latents].view(packed.dtype)
    ranges = packed.buffer[num_latents:codes_at].view(SCALE_DTYPE).view(2, num_ranges)
    codes = packed.buffer[codes_at:].view(torch.int8)
    for segment in segments:
        size = (layout.num_layers, segment.num_rows, layout.num_kv_heads, layout.head_dim)
        num_codes = _num_codes(segment, layout)
        num_key_ranges, num_value_ranges = _num_ranges(segment, layout)
        num_elements = segment.num_latents * layout.hidden_size
        key_ranges = ranges[:, :num_key_ranges]
        value_ranges = ranges[:, num_key_ranges : num_key_ranges + num_value_ranges]
        yield _Part(
            segment,
            latents[:num_elements].view(segment.num_latents, layout.hidden_size),
            _codes(codes[:num_codes].view(size), key_ranges, (size[0], 1, *size[2:])),
            _codes(codes[num_codes : 2 * num_codes].view(size), value_ranges, (*size[:3], 1)),
        )
        latents = latents[num_elements:]
        ranges = ranges[:, num_key_ranges + num_value_ranges :]
        codes = codes[2 * num_codes :]


def _codes(codes: torch.Tensor, ranges: torch.Tensor, size: tuple[int, ...]) -> Int8Codes:
    """``ranges``: [2, number of them], the scales and the middles; each of ``size`` comes out."""
    scales, middles = ranges
    return Int8Codes(codes, scales.view(size), middles.view(size))


def _num_codes(segment: Segment, layout: KVLayout) -> int:
    """Of the keys, and as many of the values."""
    return layout.num_layers * segment.num_rows * layout.num_kv_heads * layout.head_dim


def _num_ranges(segment: Segment, layout: KVLayout) -> tuple[int, int]:
    """Scales, each with a middle: of keys one per channel, of values one per row and head."""
    num_heads = layout.num_layers * layout.num_kv_heads
    return num_heads * layout.head_dim, num_heads * segment.num_rows


def _num_bytes(segments: tuple[Segment, ...], layout: KVLayout, dtype: torch.dtype) -> int:
    return sum(
        s.num_latents * layout.hidden_size * dtype.itemsize
        + 2 * sum(_num_ranges(s, layout)) * SCALE_DTYPE.itemsize
        + 2 * _num_codes(s, layout)
        for s in segments
    )


def _write(target: Int8Codes, source: Int8Codes) -> None:
    for part, written in zip(source, target, strict=True):
        written.copy_(part)
