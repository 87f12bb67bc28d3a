"""The LoRA term of a step: y += weight (x A^T) B^T, on the rows of each adapter alone.

The rows of a step are sorted by adapter, so each adapter has whole segments of neighbouring rows
(SGMV of Punica, Chen et al. 2023, in matrix products); rows of the base model are in no segment
and stay untouched. Linear layers that read the same input share one shrink.
"""

from collections.abc import Sequence
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


# By layer, then by site; None where the adapter has no target.
Terms = Sequence[Sequence[Term | None]]


class Segment(NamedTuple):
    """``num_rows`` neighbouring rows of a step and one adapter that they run with."""

    start: int
    num_rows: int
    terms: Terms
    weight: float


@dataclass(frozen=True)
class LoRABatch:
    """The adapters of one step, the same for all layers."""

    segments: Sequence[Segment]

    def add(self, layer_idx: int, site: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add the terms to ``y`` [num_rows, out_features] in place; x: [num_rows, in_features]."""
        for start, num_rows, terms, weight in self.segments:
            term = terms[layer_idx][site]
            if term is None:
                continue
            z = torch.mm(x.narrow(0, start, num_rows), term.a_t)
            rows = y.narrow(0, start, num_rows)
            for out_start, num_out, rank_start, b in term.expands:
                part = z.narrow(1, rank_start, term.rank)
                rows.narrow(1, out_start, num_out).addmm_(part, b, alpha=weight)


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
    base: BaseModel, sites: Sequence[Site], layout: AdapterLayout, a: torch.Tensor, b: torch.Tensor
) -> list[list[Term | None]]:
    """Views into the matrices of an adapter.

    a: [num_layers, >= num_a], b: [num_layers, >= num_b], as in ``PackedAdapter``.
    """
    return [
        [_term(base, site, layout, layer_a, layer_b) for site in sites]
        for layer_a, layer_b in zip(a, b, strict=True)
    ]


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
