"""Linear layers with an adapter's term on top, for decoders that are not fused."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from latentmas_core.lora.batch import LoRABatch
from latentmas_core.lora.terms import Site


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
