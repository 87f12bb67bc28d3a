"""Keys and values in 8 bits: asymmetric, keys per channel, values per row and head.

Knows nothing of segments, buffers or engines. Keys have channels that are large in every row, so a
channel has a range of its own; values have no such channels, so a row of a head has one. Most of
these ranges lie to one side of zero, and codes around their middle are about twice as fine as codes
around zero. Source: KIVI, arXiv 2402.02750 (there in 2 bits).
"""

from typing import NamedTuple

import torch

from latentmas_core.errors import SegmentError

MAX_CODE = 127
SCALE_DTYPE = torch.float16
_LARGEST = torch.finfo(SCALE_DTYPE).max
# The smallest scale that is no denormal number: below it, codes would be off by more than a half.
_MIN_SCALE = torch.finfo(SCALE_DTYPE).tiny


class Int8Codes(NamedTuple):
    """codes: int8 of any shape; scales, middles: float16, of size 1 along the shared dimension."""

    codes: torch.Tensor
    scales: torch.Tensor
    middles: torch.Tensor


def quantise(rows: torch.Tensor, *, dim: int, what: str = "rows") -> Int8Codes:
    """Along ``dim``: ``middle = (min x + max x) / 2``, ``scale = max |x - middle| / 127``, ``code =
    round((x - middle) / scale)``. |x - x'| <= scale / 2 but for the rounding of the scale itself,
    at most 2**-11 of the largest distance; the middle is rounded before anything is measured from
    it.

    Raises SegmentError, with ``what`` in its text, for numbers that are not finite or that float16
    cannot hold.
    """
    exact = rows.float()
    lowest, highest = exact.aminmax(dim=dim, keepdim=True)
    if not bool(((lowest >= -_LARGEST) & (highest <= _LARGEST)).all()):
        raise SegmentError(
            f"{what} go from {lowest.min().item():g} to {highest.max().item():g}; int8 takes "
            f"finite numbers up to {_LARGEST:g} of either sign. Set transfer_dtype to 'model'.",
            param="transfer_dtype",
        )
    middles = ((lowest + highest) / 2).to(SCALE_DTYPE)
    distances = exact - middles.float()
    largest = distances.abs().amax(dim=dim, keepdim=True)
    scales = (largest / MAX_CODE).clamp_(min=_MIN_SCALE).to(SCALE_DTYPE)
    codes = distances.div_(scales.float()).round_().clamp_(-MAX_CODE, MAX_CODE)
    return Int8Codes(codes.to(torch.int8), scales, middles)


def dequantise(quantised: Int8Codes, dtype: torch.dtype) -> torch.Tensor:
    """``middle + code * scale``, computed in fp32, of the shape of the codes."""
    exact = quantised.codes.float().mul_(quantised.scales.float())
    return exact.add_(quantised.middles.float()).to(dtype)
