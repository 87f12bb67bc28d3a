"""A linear layer whose weight is laid out for oneDNN: the CPU's way to decode quickly.

y = x W^T + b. The plain ``nn.Linear`` stays the oracle and the fall-back wherever oneDNN is not.
"""

import torch
from torch import nn

# Rows that the layout is tuned for. It serves any number; 16 suits decoding from 1 to 32 rows.
TUNED_NUM_ROWS = 16


class PackedLinear(nn.Module):
    """weight: [out_features, in_features], bias: [out_features] or None; both are copied."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(
            weight.detach().contiguous(), TUNED_NUM_ROWS
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.packed, self.bias, "none", [], ""
        )
        return y

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this type on this machine."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype is torch.float32:
        return True
    return dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None, *, is_packed: bool) -> nn.Module:
    """A linear layer over the given weight, packed if asked for."""
    if is_packed:
        return PackedLinear(weight, bias)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
