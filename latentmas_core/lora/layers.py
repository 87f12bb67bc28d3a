"""The LoRA term of a step: y += weight (x A^T) B^T, on the rows of each adapter alone.

The rows of a step are sorted by adapter, so each adapter has whole segments of neighbouring rows
(SGMV of Punica, Chen et al. 2023, in matrix products); rows of the base model are in no segment
and stay untouched. Linear layers that read the same input share one shrink.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

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
    matrices begin in a layer's keys and values, in elements.
    """

    layout: AdapterLayout
    offset: int
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


class LoRABatch:
    """The adapters of one step, the same for all layers.

    Adapters of one layout with equally many rows that lie at equal distances are multiplied
    together, as one batch of matrices: no weight is copied for that.
    """

    def __init__(self, segments: Iterable[Segment]) -> None:
        self.segments: list[Segment] = []
        for segment in segments:
            joined = _join(self.segments[-1], segment) if self.segments else None
            if joined is None:
                self.segments.append(segment)
            else:
                self.segments[-1] = joined

    def add(self, layer_idx: int, site: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add the terms to ``y`` [num_rows, out_features] in place; x: [num_rows, in_features]."""
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
