"""Packed segments in 8 bits for the wire, and back: about half the bytes of bfloat16.

Layout of the buffer: the latents of all segments in the model's dtype, then the scales of all, then
all codes, so that each part is aligned. Latents stay as they are: they are few, and whoever
prefills again from them repeats every rounding.
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
    """The content by segment id, in the model's dtype. SegmentError if the sizes do not fit."""
    expected = _num_bytes(packed.segments, packed.layout, packed.dtype)
    if packed.num_bytes != expected:
        raise SegmentError(
            f"int8 buffer has {packed.num_bytes} bytes; {len(packed.segments)} segment(s) with "
            f"{packed.layout} in {packed.dtype} need {expected}. The transfer was cut or the "
            "header is another's.",
            param="memory",
        )
    return {
        part.segment.segment_id: SegmentTensors(
            part.latents,
            KVRows(dequantise(part.keys, packed.dtype), dequantise(part.values, packed.dtype)),
        )
        for part in _parts(packed)
    }


def _parts(packed: Int8Segments) -> Iterator[_Part]:
    layout, segments = packed.layout, packed.segments
    num_latents = sum(s.num_latents for s in segments) * layout.hidden_size * packed.dtype.itemsize
    num_scales = sum(sum(_num_scales(s, layout)) for s in segments) * SCALE_DTYPE.itemsize
    codes_at = num_latents + num_scales
    latents = packed.buffer[:num_latents].view(packed.dtype)
    scales = packed.buffer[num_latents:codes_at].view(SCALE_DTYPE)
    codes = packed.buffer[codes_at:].view(torch.int8)
    for segment in segments:
        size = (layout.num_layers, segment.num_rows, layout.num_kv_heads, layout.head_dim)
        num_codes = _num_codes(segment, layout)
        num_key_scales, num_value_scales = _num_scales(segment, layout)
        num_elements = segment.num_latents * layout.hidden_size
        key_size, value_size = (size[0], 1, *size[2:]), (*size[:3], 1)
        yield _Part(
            segment,
            latents[:num_elements].view(segment.num_latents, layout.hidden_size),
            Int8Codes(codes[:num_codes].view(size), scales[:num_key_scales].view(key_size)),
            Int8Codes(
                codes[num_codes : 2 * num_codes].view(size),
                scales[num_key_scales : num_key_scales + num_value_scales].view(value_size),
            ),
        )
        latents = latents[num_elements:]
        codes = codes[2 * num_codes :]
        scales = scales[num_key_scales + num_value_scales :]


def _num_codes(segment: Segment, layout: KVLayout) -> int:
    """Of the keys, and as many of the values."""
    return layout.num_layers * segment.num_rows * layout.num_kv_heads * layout.head_dim


def _num_scales(segment: Segment, layout: KVLayout) -> tuple[int, int]:
    """Of the keys, one per channel, and of the values, one per row of a head."""
    num_heads = layout.num_layers * layout.num_kv_heads
    return num_heads * layout.head_dim, num_heads * segment.num_rows


def _num_bytes(segments: tuple[Segment, ...], layout: KVLayout, dtype: torch.dtype) -> int:
    return sum(
        s.num_latents * layout.hidden_size * dtype.itemsize
        + sum(_num_scales(s, layout)) * SCALE_DTYPE.itemsize
        + 2 * _num_codes(s, layout)
        for s in segments
    )


def _write(target: Int8Codes, source: Int8Codes) -> None:
    target.codes.copy_(source.codes)
    target.scales.copy_(source.scales)
