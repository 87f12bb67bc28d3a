"""What adapters add to the rows of a step: views of their matrices, and which rows are whose.

Plain data; ``layers.py`` computes with it.
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
    """What one adapter adds at one site: z = x a_t; a_t: [in_features, ranks of all targets]."""

    a_t: torch.Tensor
    rank: int
    expands: tuple[Expand, ...]


@dataclass(frozen=True)
class AdapterTerms:
    """One adapter on the device, as views of the pool.

    by_layer: by layer, then by site; None where the adapter has no target. offset: where its
    matrices begin in a layer's keys and values, in elements; extent: how much of them it has.
    """

    layout: AdapterLayout
    offset: int
    extent: int
    by_layer: Sequence[Sequence[Term | None]]


class Segment(NamedTuple):
    """Neighbouring rows of a step: ``num_rows`` for each of ``num_adapters`` adapters.

    ``adapter`` is the first of them; each further one lies ``stride`` elements behind the last.
    """

    start: int
    num_rows: int
    adapter: AdapterTerms
    weight: float
    num_adapters: int = 1
    stride: int = 0

    @property
    def end(self) -> int:
        return self.start + self.num_adapters * self.num_rows


def make_terms(
    base: BaseModel,
    sites: Sequence[Site],
    layout: AdapterLayout,
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
    *,
    extent: int,
) -> AdapterTerms:
    """Views into the matrices of an adapter.

    a, b: by layer, [>= num_a] and [>= num_b] elements as in ``PackedAdapter``; both begin at the
    same place of the tensors that they are views of, and have ``extent`` elements to themselves.
    """
    by_layer = [
        [_term(base, site, layout, layer_a, layer_b) for site in sites]
        for layer_a, layer_b in zip(a, b, strict=True)
    ]
    return AdapterTerms(layout, int(a[0].storage_offset()), extent, by_layer)


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
