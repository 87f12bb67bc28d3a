"""Keys and values in 8 bits: symmetric, keys per channel, values per row and head.

Knows nothing of segments, buffers or engines. Keys have channels that are large in every row, so a
channel has a scale of its own; values have no such channels, so a row of a head has one. Source:
KIVI, arXiv 2402.02750 (there asymmetric and in 2 bits).
"""

from typing import NamedTuple

import torch

from latentmas_core.errors import SegmentError

MAX_CODE = 127
SCALE_DTYPE = torch.float16
# The smallest scale that is no denormal number: below it, codes would be off by more than a half.
_MIN_SCALE = torch.finfo(SCALE_DTYPE).tiny


class Int8Codes(NamedTuple):
    """codes: int8 of any shape; scales: float16, of size 1 along the dimension that shares one."""

    codes: torch.Tensor
    scales: torch.Tensor


def quantise(rows: torch.Tensor, *, dim: int, what: str = "rows") -> Int8Codes:
    """``scale = max |x| / 127`` along ``dim``, ``code = round(x / scale)``; |x - x'| <= scale / 2
    but for the rounding of the scale itself, at most 2**-11 of the largest.

    Raises SegmentError, with ``what`` in its text, for numbers that are not finite or that a
    float16 scale cannot hold.
    """
    exact = rows.float()
    largest = exact.abs().amax(dim=dim, keepdim=True)
    limit = torch.finfo(SCALE_DTYPE).max * MAX_CODE
    if not bool((largest <= limit).all()):
        raise SegmentError(
            f"{what} go up to {largest.max().item():g}; int8 takes finite numbers up to {limit:g}. "
            "Set transfer_dtype to 'model'.",
            param="transfer_dtype",
        )
    scales = (largest / MAX_CODE).clamp_(min=_MIN_SCALE).to(SCALE_DTYPE)
    codes = (exact / scales.float()).round_().clamp_(-MAX_CODE, MAX_CODE)
    return Int8Codes(codes.to(torch.int8), scales)


def dequantise(quantised: Int8Codes, dtype: torch.dtype) -> torch.Tensor:
    """``code * scale``, computed in fp32, of the shape of the codes."""
    return (quantised.codes.float() * quantised.scales.float()).to(dtype)
