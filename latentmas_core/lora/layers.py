"""The LoRA term of a step: y += weight (x A^T) B^T, on the rows of each adapter alone.

The rows of a step are sorted by adapter, so each adapter has whole segments of neighbouring rows
(SGMV of Punica, Chen et al. 2023, in matrix products); rows of the base model are in no segment
and stay untouched. Linear layers that read the same input share one shrink.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from latentmas_core.lora.spread import Spread, find_spreads
from latentmas_core.lora.terms import Segment, Site, Term


class LoRABatch:
    """The adapters of one step, the same for all layers.

    Adapters of one layout with equally many rows that lie at equal distances are multiplied
    together, as one batch of matrices: no weight is copied for that. So are those with one row
    each that lie in a row with gaps (``spreads``).
    """

    def __init__(self, segments: Iterable[Segment]) -> None:
        segments = list(segments)
        spreads = find_spreads(segments)
        spread = {id(segment) for members in spreads for segment in members}
        self.spreads = [Spread(members) for members in spreads]
        self.segments = _joined(segment for segment in segments if id(segment) not in spread)

    def add(self, layer_idx: int, site: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add the terms to ``y`` [num_rows, out_features] in place; x: [num_rows, in_features]."""
        for spread in self.spreads:
            term = spread.adapter.by_layer[layer_idx][site]
            if term is not None:
                spread.add(term, x, y)
        for segment in self.segments:
            term = segment.adapter.by_layer[layer_idx][site]
            if term is None:
                continue
            num_rows = segment.end - segment.start
            x_rows = x.narrow(0, segment.start, num_rows)
            y_rows = y.narrow(0, segment.start, num_rows)
            if segment.num_adapters == 1:
                _add_one(term, x_rows, y_rows, segment.weight)
            else:
                _add_many(term, x_rows, y_rows, segment)


def _add_one(term: Term, x: torch.Tensor, y: torch.Tensor, weight: float) -> None:
    z = torch.mm(x, term.a_t)
    for out_start, num_out, rank_start, b in term.expands:
        part = z.narrow(1, rank_start, term.rank)
        y.narrow(1, out_start, num_out).addmm_(part, b, alpha=weight)


def _add_many(term: Term, x: torch.Tensor, y: torch.Tensor, segment: Segment) -> None:
    """The same for adapters at equal distances, out of the views of the first."""
    count, stride = segment.num_adapters, segment.stride
    in_features, num_ranks = term.a_t.shape
    a_t = term.a_t.as_strided((count, in_features, num_ranks), (stride, 1, in_features))
    z = torch.bmm(x.reshape(count, -1, in_features), a_t)
    rows = y.view(count, -1, y.shape[-1])
    for out_start, num_out, rank_start, first in term.expands:
        b = first.as_strided((count, term.rank, num_out), (stride, num_out, 1))
        part = z.narrow(2, rank_start, term.rank)
        rows.narrow(2, out_start, num_out).baddbmm_(part, b, alpha=segment.weight)


def _joined(segments: Iterable[Segment]) -> list[Segment]:
    joined: list[Segment] = []
    for segment in segments:
        both = _join(joined[-1], segment) if joined else None
        if both is None:
            joined.append(segment)
        else:
            joined[-1] = both
    return joined


def _join(left: Segment, right: Segment) -> Segment | None:
    """Both as one segment, where the second goes on just as the first."""
    is_alike = (
        left.num_rows == right.num_rows
        and left.weight == right.weight
        and left.end == right.start
        and left.adapter.layout == right.adapter.layout
    )
    last = left.adapter.offset + (left.num_adapters - 1) * left.stride
    stride = right.adapter.offset - last
    if not is_alike or stride <= 0 or (left.num_adapters > 1 and stride != left.stride):
        return None
    return left._replace(num_adapters=left.num_adapters + 1, stride=stride)


class LoRALinear(nn.Module):
    """A linear layer of any kind, quantised ones too, with the terms of the step's batch on top.

    ``lora`` is set around a forward pass. The base runs untouched; the terms are computed from the
    same input.
    """

    def __init__(self, base: nn.Module, layer_idx: int, site: int) -> None:
        super().__init__()
        self.base = base
        self.layer_idx = layer_idx
        self.site = site
        self.lora: LoRABatch | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.base(x)
        if self.lora is None:
            return y
        rows = y.reshape(-1, y.shape[-1])
        self.lora.add(self.layer_idx, self.site, x.reshape(-1, x.shape[-1]), rows)
        return rows.view(y.shape)


def wrap_linears(layers: Any, sites: Sequence[Site]) -> list[LoRALinear]:
    """Put a ``LoRALinear`` around each target of each decoder layer; each site has one target."""
    wrapped = []
    for layer_idx, layer in enumerate(layers):
        for site, (target,) in enumerate(sites):
            parent, _, name = target.rpartition(".")
            module = layer.get_submodule(parent)
            linear = LoRALinear(getattr(module, name), layer_idx, site)
            setattr(module, name, linear)
            wrapped.append(linear)
    return wrapped
