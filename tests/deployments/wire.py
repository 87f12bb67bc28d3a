"""Packed segments made up of numbers that tell where they belong, and an object store of bytes."""

import pickle
from typing import TypeVar

import torch

from latentmas_core.latent.codec import KVLayout, PackedSegments, pack
from latentmas_core.latent.segment import KVRows, Segment, SegmentTensors
from tests.latent.factories import filling

T = TypeVar("T")

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=4, hidden_size=8)


def make_segment(agent: str = "planner", *, num_tokens: int = 3, num_latents: int = 2) -> Segment:
    return Segment(
        agent,
        "model",
        first_position=0,
        token_ids=tuple(range(num_tokens)),
        num_latents=num_latents,
    )


def make_tensors(segment: Segment, dtype: torch.dtype, *, seed: int = 0) -> SegmentTensors:
    generator = torch.Generator().manual_seed(seed)
    size = (LAYOUT.num_layers, segment.num_rows, LAYOUT.num_kv_heads, LAYOUT.head_dim)
    return SegmentTensors(
        torch.randn(segment.num_latents, LAYOUT.hidden_size, generator=generator).to(dtype),
        KVRows(
            torch.randn(size, generator=generator).to(dtype),
            torch.randn(size, generator=generator).to(dtype),
        ),
    )


def make_packed(
    *segments: Segment, dtype: torch.dtype = torch.float32, has_kv: bool = True
) -> PackedSegments:
    tensors = [make_tensors(segment, dtype, seed=i) for i, segment in enumerate(segments)]
    return pack(segments, filling(segments, tensors), LAYOUT, dtype=dtype, has_kv=has_kv)


def send(message: T) -> T:
    """As a reader on another process sees it: arrays lie in memory that cannot be written."""
    buffers: list[pickle.PickleBuffer] = []
    header = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    received: T = pickle.loads(header, buffers=[bytes(buffer) for buffer in buffers])
    return received
