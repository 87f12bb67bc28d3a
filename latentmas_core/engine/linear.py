"""Linear layers without the cost of a module call: y = x W^T + b.

On a CPU the weight is laid out for oneDNN, which decodes quickly; plain elsewhere.
"""

from collections.abc import Callable

import torch

# [num_rows, in_features] -> [num_rows, out_features]
Linear = Callable[[torch.Tensor], torch.Tensor]

# Rows that the layout is tuned for. It serves any number; 16 suits decoding from 1 to 32 rows.
TUNED_NUM_ROWS = 16


# The overload itself: a look-up among overloads costs as much as the call.
_linear = torch.ops.mkldnn._linear_pointwise.default


class PlainLinear:
    """weight: [out_features, in_features], bias: [out_features] or None; both are shared."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight_t = weight.detach().t()
        self.bias = None if bias is None else bias.detach()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.bias is None:
            return torch.mm(x, self.weight_t)
        return torch.addmm(self.bias, x, self.weight_t)


class PackedLinear:
    """weight: [out_features, in_features], bias: [out_features] or None; both are copied."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.bias = None if bias is None else bias.detach().clone()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(
            weight.detach().contiguous(), TUNED_NUM_ROWS
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _linear(x, self.packed, self.bias, "none", [], "")
        return y


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this type on this machine."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype is torch.float32:
        return True
    return dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None, *, is_packed: bool) -> Linear:
    """A linear layer over the given weight, packed if asked for."""
    return (PackedLinear if is_packed else PlainLinear)(weight, bias)
