"""Linear layers without the cost of a module call: y = x W^T + b.

On a CPU the weight is laid out for oneDNN, which decodes quickly. Where a CPU has no instructions
for 16-bit numbers, many rows are multiplied in fp32. Plain everywhere else.
"""

from collections.abc import Callable

import torch

# [num_rows, in_features] -> [num_rows, out_features]
Linear = Callable[[torch.Tensor], torch.Tensor]
# weight [out_features, in_features] and bias [out_features] or None -> a linear layer
MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], Linear]

# Rows that the layout is tuned for. It serves any number; 16 suits decoding from 1 to 32 rows.
TUNED_NUM_ROWS = 16

# From here on widening the weights takes less time than multiplying 16-bit numbers without
# instructions for them: as long with 8 rows, 4 times faster with 45 and with 128.
MIN_WIDENED_ROWS = 9
# Weight rows that are widened at a time: few enough to stay in the cache until they are multiplied.
NUM_WIDENED_OUTPUTS = 1024

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


class WidenedLinear(PlainLinear):
    """A 16-bit layer that multiplies many rows in fp32, and rounds once; few rows as they are."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] < MIN_WIDENED_ROWS:
            return super().__call__(x)
        wide = x.float()
        parts = torch.split(self.weight_t, NUM_WIDENED_OUTPUTS, dim=1)
        outputs = [torch.mm(wide, part.float()) for part in parts]
        y = torch.cat(outputs, dim=1)
        return (y if self.bias is None else y.add_(self.bias)).to(x.dtype)


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """A layer of the kind that is quickest where its weight lies."""
    return choose_linear(weight.device, weight.dtype)(weight, bias)


def choose_linear(device: torch.device, dtype: torch.dtype) -> MakeLinear:
    """The kind of layer that is quickest on this machine."""
    if _can_pack(device, dtype):
        return PackedLinear
    is_narrow = dtype in (torch.bfloat16, torch.float16)
    return WidenedLinear if device.type == "cpu" and is_narrow else PlainLinear


def _can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this type on this machine."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype is torch.float32:
        return True
    return dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
