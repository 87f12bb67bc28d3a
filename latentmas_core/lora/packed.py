"""An adapter in two matrices, ready to be copied to a device as it is. Knows no blocks.

Per layer all shrink matrices stand behind each other in one row, all expand matrices in another,
in the order of the base model's targets. So an adapter of any rank moves in two copies, and every
matrix of it is a view. The scaling is folded into the expand matrices, in fp32.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from latentmas_core.engine.kv_pool import max_state
from latentmas_core.errors import AdapterError
from latentmas_core.lora.base_model import BaseModel
from latentmas_core.lora.checkpoint import LoRACheckpoint


class Span(NamedTuple):
    """Where the matrices of one target begin in a layer's rows, in elements."""

    a_start: int
    b_start: int
    out_features: int
    in_features: int


@dataclass(frozen=True)
class AdapterLayout:
    """num_a, num_b: elements of a layer's shrink and expand matrices."""

    rank: int
    spans: Mapping[str, Span]
    num_a: int
    num_b: int

    @classmethod
    def of(cls, base: BaseModel, targets: Iterable[str], rank: int) -> "AdapterLayout":
        """Where the matrices of an adapter with these targets lie in its two rows of numbers."""
        spans: dict[str, Span] = {}
        num_a = num_b = 0
        for target in targets:
            out_features, in_features = base.targets[target]
            spans[target] = Span(num_a, num_b, out_features, in_features)
            num_a += rank * in_features
            num_b += rank * out_features
        return cls(rank, spans, num_a, num_b)


@dataclass(frozen=True)
class PackedAdapter:
    """a: [num_layers, num_a], of [rank, in_features] matrices; b: [num_layers, num_b], of
    [rank, out_features] ones, scaled."""

    digest: str
    layout: AdapterLayout
    a: torch.Tensor
    b: torch.Tensor

    @property
    def num_bytes(self) -> int:
        return self.a.nbytes + self.b.nbytes


def pack_adapter(
    checkpoint: LoRACheckpoint, base: BaseModel, dtype: torch.dtype, *, is_pinned: bool
) -> PackedAdapter:
    """``is_pinned``: in page-locked memory, from which a GPU copies on its own.

    Raises AdapterError for weights that ``dtype`` does not hold.
    """
    layout = AdapterLayout.of(base, checkpoint.targets, checkpoint.rank)
    a = torch.empty(base.num_layers, layout.num_a, dtype=dtype, pin_memory=is_pinned)
    b = torch.empty(base.num_layers, layout.num_b, dtype=dtype, pin_memory=is_pinned)
    for target, span in layout.spans.items():
        pairs = [checkpoint.weights[layer, target] for layer in range(base.num_layers)]
        shrinks = torch.stack([pair.a for pair in pairs])
        expands = torch.stack([pair.b for pair in pairs]).float().transpose(1, 2)
        a[:, span.a_start :][:, : shrinks[0].numel()] = shrinks.flatten(1)
        b[:, span.b_start :][:, : expands[0].numel()] = (expands * checkpoint.scaling).flatten(1)
    for matrices in (a, b):
        _refuse_overflow(matrices, checkpoint.scaling)
    return PackedAdapter(checkpoint.digest, layout, a, b)


def _refuse_overflow(matrices: torch.Tensor, scaling: float) -> None:
    limit = max_state(matrices.dtype)
    low, high = (extreme.item() for extreme in torch.aminmax(matrices))
    if not (-limit <= low and high <= limit):  # nor is NaN within the limits
        raise AdapterError(
            f"the adapter's weights, scaled by {scaling:g}, reach from {low:g} to {high:g}; "
            f"{limit:g} is the most that is computed with in {matrices.dtype}. Its training "
            "diverged, its lora_alpha is wrong, or it needs dtype float32.",
            param="path",
        )
