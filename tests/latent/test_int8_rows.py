"""Rows in 8 bits are off by half a scale at most, and what 8 bits cannot hold is refused."""

import pytest
import torch

from latentmas_core.errors import SegmentError
from latentmas_core.latent.int8_rows import dequantise, quantise

SIZE = (3, 5, 2, 8)  # [num_layers, num_rows, num_kv_heads, head_dim]


def naive(numbers: list[float]) -> list[float]:
    """The formula for numbers that share a range, one at a time."""
    middle = in_half((min(numbers) + max(numbers)) / 2)
    scale = in_half(max(abs(number - middle) for number in numbers) / 127)
    return [middle + round((number - middle) / scale) * scale for number in numbers]


def in_half(number: float) -> float:
    return float(torch.tensor(number).half())


def create_rows(seed: int = 0) -> torch.Tensor:
    rows = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))
    rows[..., 3] *= 40  # a channel that is large in every row, as keys have
    return rows


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_number_is_off_by_half_its_scale_at_most(dim: int, dtype: torch.dtype) -> None:
    rows = create_rows().to(dtype)
    quantised = quantise(rows, dim=dim)
    assert quantised.codes.dtype is torch.int8
    size = tuple(1 if d == dim else n for d, n in enumerate(SIZE))
    assert quantised.scales.shape == quantised.middles.shape == size
    error = (dequantise(quantised, torch.float32) - rows.float()).abs()
    scales = quantised.scales.float()
    assert bool((error <= scales * (0.5 + 127 * 2**-11)).all())
    assert bool((error > 0).any())


def test_it_equals_the_formula_computed_one_number_at_a_time() -> None:
    rows = create_rows(seed=1)
    made = dequantise(quantise(rows, dim=3), torch.float32)
    expected = torch.tensor([naive(row) for row in rows.view(-1, SIZE[3]).tolist()]).view(SIZE)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)


def test_one_large_channel_does_not_coarsen_the_others() -> None:
    rows = create_rows()
    by_channel = dequantise(quantise(rows, dim=1), torch.float32)
    by_row = dequantise(quantise(rows, dim=3), torch.float32)
    small = [0, 1, 2, 4, 5, 6, 7]
    errors = [(made - rows)[..., small].abs().mean() for made in (by_channel, by_row)]
    assert errors[0] < errors[1] / 5


@pytest.mark.parametrize("dim", [1, 3])
def test_zeros_stay_zeros(dim: int) -> None:
    zeros = torch.zeros(SIZE)
    assert torch.equal(dequantise(quantise(zeros, dim=dim), torch.float32), zeros)


def test_numbers_to_one_side_of_zero_are_as_fine_as_their_spread() -> None:
    rows = create_rows()
    moved = dequantise(quantise(rows + 100, dim=1), torch.float32) - 100
    errors = [
        (made - rows).norm() for made in (moved, dequantise(quantise(rows, dim=1), rows.dtype))
    ]
    torch.testing.assert_close(errors[0], errors[1], rtol=0.2, atol=0)


def test_one_row_of_one_number_per_channel_is_off_by_half_the_smallest_scale() -> None:
    rows = create_rows()[:, :1]
    made = dequantise(quantise(rows, dim=1), torch.float32)
    torch.testing.assert_close(made, rows, rtol=0, atol=torch.finfo(torch.float16).tiny / 2 * 1.01)


def test_what_comes_back_has_the_dtype_that_is_asked_for() -> None:
    assert dequantise(quantise(create_rows(), dim=1), torch.bfloat16).dtype is torch.bfloat16


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 7e4, -7e4])
def test_numbers_that_8_bits_cannot_hold_are_refused_by_name(number: float) -> None:
    rows = create_rows()
    rows[1, 2, 0, 3] = number
    with pytest.raises(SegmentError, match=r"keys of 'planner' go from .* transfer_dtype"):
        quantise(rows, dim=1, what="keys of 'planner'")
