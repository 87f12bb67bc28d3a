"""What an adapter adds, as views into its matrices on the device. Knows no rows and no steps.

Linear layers that read the same input are one site and share one shrink.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from latentmas_core.lora.base_model import BaseModel
from latentmas_core.lora.packed import AdapterLayout, Span

# The targets of one computed product, by their paths in a layer; their outputs stand side by side.
Site = tuple[str, ...]


class Expand(NamedTuple):
    """y[:, out_start : + num_out] += z[:, rank_start : + rank] b; b: [rank, num_out]."""

    out_start: int
    num_out: int
    rank_start: int
    b: torch.Tensor


class Term(NamedTuple):
    """What one adapter adds at one site: z = x a_t; a_t: [in_features, ranks of all targets].

    The expand matrices lie behind each other.
    """

    a_t: torch.Tensor
    rank: int
    expands: tuple[Expand, ...]

    @property
    def num_a(self) -> int:
        return self.a_t.numel()

    @property
    def num_b(self) -> int:
        return sum(expand.b.numel() for expand in self.expands)

    @property
    def num_bytes(self) -> int:
        return (self.num_a + self.num_b) * self.a_t.itemsize


@dataclass(frozen=True)
class AdapterTerms:
    """One adapter on the device, as views of the pool.

    by_layer: by layer, then by site; None where the adapter has no target. offset: where its
    matrices begin in a layer's keys and values, in elements.
    """

    layout: AdapterLayout
    offset: int
    by_layer: Sequence[Sequence[Term | None]]


def make_terms(
    base: BaseModel,
    sites: Sequence[Site],
    layout: AdapterLayout,
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
) -> AdapterTerms:
    """Views into the matrices of an adapter.

    a, b: by layer, [>= num_a] and [>= num_b] elements as in ``PackedAdapter``; both begin at the
    same place of the tensors that they are views of.
    """
    by_layer = [
        [_term(base, site, layout, layer_a, layer_b) for site in sites]
        for layer_a, layer_b in zip(a, b, strict=True)
    ]
    return AdapterTerms(layout, int(a[0].storage_offset()), by_layer)


def _term(
    base: BaseModel, site: Site, layout: AdapterLayout, a: torch.Tensor, b: torch.Tensor
) -> Term | None:
    rank = layout.rank
    spans: list[Span] = []
    expands: list[Expand] = []
    out_start = 0
    for target in site:
        num_out, _ = base.targets[target]
        span = layout.spans.get(target)
        if span is not None:
            matrix = b.narrow(0, span.b_start, rank * num_out).view(rank, num_out)
            expands.append(Expand(out_start, num_out, len(spans) * rank, matrix))
            spans.append(span)
        out_start += num_out
    if not spans:
        return None
    # Targets of a site are neighbours in the layout, so their shrinks are one matrix.
    num_ranks, in_features = len(spans) * rank, spans[0].in_features
    shrink = a.narrow(0, spans[0].a_start, num_ranks * in_features)
    return Term(shrink.view(num_ranks, in_features).t(), rank, tuple(expands))
