"""Linear layers compute what torch's own compute, packed or not."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from latentmas_core.engine.linear import (
    MIN_WIDENED_ROWS,
    MakeLinear,
    PackedLinear,
    PlainLinear,
    WidenedLinear,
    choose_linear,
)

CPU = torch.device("cpu")


def create_linear(*, has_bias: bool, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 80, bias=has_bias, dtype=dtype).requires_grad_(False)


def create_rows(num_rows: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(num_rows, 48, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 3, 16, 17, 200])
@pytest.mark.parametrize("make_linear", [PackedLinear, PlainLinear])
def test_result_equals_that_of_torchs_own_layer(
    num_rows: int, has_bias: bool, make_linear: MakeLinear
) -> None:
    plain, rows = create_linear(has_bias=has_bias), create_rows(num_rows)
    linear = make_linear(plain.weight, plain.bias)
    assert_close(linear(rows), plain(rows), atol=1e-5, rtol=0)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_rows", [1, MIN_WIDENED_ROWS - 1, MIN_WIDENED_ROWS, 40])
@pytest.mark.parametrize("num_outputs", [80, 2500])
def test_widened_layer_rounds_what_is_exact(
    num_outputs: int, num_rows: int, dtype: torch.dtype, has_bias: bool
) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(48, num_outputs, bias=has_bias, dtype=dtype).requires_grad_(False)
    rows = create_rows(num_rows, dtype=dtype)
    y = WidenedLinear(plain.weight, plain.bias)(rows)
    assert y.dtype is dtype
    exact = rows.double() @ plain.weight.double().T
    exact = exact + plain.bias.double() if has_bias else exact
    eps = torch.finfo(dtype).eps
    assert_close(y.double(), exact, atol=4 * eps, rtol=eps)


def test_result_is_that_of_bfloat16_where_weights_are() -> None:
    make_linear = choose_linear(CPU, torch.bfloat16)
    plain = create_linear(has_bias=True, dtype=torch.bfloat16)
    rows = create_rows(7, dtype=torch.bfloat16)
    y = make_linear(plain.weight, plain.bias)(rows)
    assert y.dtype is torch.bfloat16
    exact = rows.float() @ plain.weight.float().T + plain.bias.float()
    assert_close(y.float(), exact, atol=2e-2, rtol=2e-2)


def test_rows_that_are_a_part_of_a_wider_tensor_are_read_rightly() -> None:
    plain = create_linear(has_bias=True)
    wide = torch.randn(5, 96, generator=torch.Generator().manual_seed(2))
    packed = PackedLinear(plain.weight, plain.bias)
    assert_close(packed(wide[:, 48:]), plain(wide[:, 48:]), atol=1e-5, rtol=0)


def test_packed_layer_keeps_its_own_weight_and_bias() -> None:
    plain, rows = create_linear(has_bias=True), create_rows(4)
    expected = plain(rows)
    packed = PackedLinear(plain.weight, plain.bias)
    plain.weight.zero_()
    plain.bias.zero_()
    assert_close(packed(rows), expected, atol=1e-5, rtol=0)


def test_plain_layer_shares_the_given_weight() -> None:
    weight = create_linear(has_bias=False).weight
    linear = PlainLinear(weight, None)
    assert linear.weight_t.data_ptr() == weight.data_ptr()


def test_layers_are_chosen_by_device_and_type(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert choose_linear(cuda, torch.float32) is PlainLinear
    assert choose_linear(cuda, torch.bfloat16) is PlainLinear
    assert choose_linear(CPU, torch.float16) is WidenedLinear
    assert choose_linear(CPU, torch.bfloat16) in (PackedLinear, WidenedLinear)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert choose_linear(CPU, torch.float32) is PlainLinear
    assert choose_linear(CPU, torch.bfloat16) is WidenedLinear
