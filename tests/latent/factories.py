"""Segments and their content, small and made from a seed."""

from collections.abc import Iterable
from typing import Any

import torch

from latentmas_core.latent.codec import Fill, KVLayout
from latentmas_core.latent.segment import KVRows, Segment, SegmentTensors

LAYOUT = KVLayout(num_layers=3, num_kv_heads=2, head_dim=8, hidden_size=12)


def create_segment(
    agent: str = "planner",
    *,
    first_position: int = 0,
    num_tokens: int = 3,
    num_latents: int = 2,
    fingerprint: str = "model-a",
    **fields: Any,
) -> Segment:
    token_ids = tuple(range(10, 10 + num_tokens))
    return Segment(agent, fingerprint, first_position, token_ids, num_latents, **fields)


def filling(segments: Iterable[Segment], contents: Iterable[SegmentTensors]) -> Fill:
    """Copies each segment's content to where it is to go."""
    content_of = dict(zip([s.segment_id for s in segments], contents, strict=True))

    def fill(segment: Segment, target: SegmentTensors) -> None:
        content = content_of[segment.segment_id]
        target.latents.copy_(content.latents)
        if target.kv is not None:
            assert content.kv is not None
            target.kv.keys.copy_(content.kv.keys)
            target.kv.values.copy_(content.kv.values)

    return fill


def create_tensors(
    segment: Segment, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> SegmentTensors:
    generator = torch.Generator().manual_seed(seed)
    size = (LAYOUT.num_layers, segment.num_rows, LAYOUT.num_kv_heads, LAYOUT.head_dim)
    keys, values = (torch.randn(size, generator=generator).to(dtype) for _ in range(2))
    latents = torch.randn(segment.num_latents, LAYOUT.hidden_size, generator=generator)
    return SegmentTensors(latents.to(dtype), KVRows(keys, values))
