"""Linear layers compute what torch's own compute, packed or not."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from latentmas_core.engine.linear import PackedLinear, PlainLinear, can_pack, make_linear

CPU = torch.device("cpu")


def create_linear(*, has_bias: bool, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 80, bias=has_bias, dtype=dtype).requires_grad_(False)


def create_rows(num_rows: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(num_rows, 48, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 3, 16, 17, 200])
@pytest.mark.parametrize("is_packed", [True, False])
def test_result_equals_that_of_the_plain_layer(
    num_rows: int, has_bias: bool, is_packed: bool
) -> None:
    plain, rows = create_linear(has_bias=has_bias), create_rows(num_rows)
    linear = make_linear(plain.weight, plain.bias, is_packed=is_packed)
    assert_close(linear(rows), plain(rows), atol=1e-5, rtol=0)


def test_result_is_that_of_bfloat16_where_weights_are() -> None:
    if not can_pack(CPU, torch.bfloat16):
        pytest.skip("oneDNN does not pack bfloat16 on this machine")
    plain = create_linear(has_bias=True, dtype=torch.bfloat16)
    rows = create_rows(7, dtype=torch.bfloat16)
    packed = make_linear(plain.weight, plain.bias, is_packed=True)(rows)
    assert packed.dtype is torch.bfloat16
    exact = rows.float() @ plain.weight.float().T + plain.bias.float()
    assert_close(packed.float(), exact, atol=2e-2, rtol=2e-2)


def test_rows_that_are_a_part_of_a_wider_tensor_are_read_rightly() -> None:
    plain = create_linear(has_bias=True)
    wide = torch.randn(5, 96, generator=torch.Generator().manual_seed(2))
    packed = make_linear(plain.weight, plain.bias, is_packed=True)
    assert_close(packed(wide[:, 48:]), plain(wide[:, 48:]), atol=1e-5, rtol=0)


def test_packed_layer_keeps_its_own_weight() -> None:
    plain, rows = create_linear(has_bias=False), create_rows(4)
    expected = plain(rows)
    packed = PackedLinear(plain.weight, None)
    plain.weight.zero_()
    assert_close(packed(rows), expected, atol=1e-5, rtol=0)


def test_plain_layer_shares_the_given_weight() -> None:
    weight = create_linear(has_bias=False).weight
    linear = make_linear(weight, None, is_packed=False)
    assert isinstance(linear, PlainLinear)
    assert linear.weight_t.data_ptr() == weight.data_ptr()


def test_only_the_cpu_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not can_pack(torch.device("cuda"), torch.float32)
    assert not can_pack(CPU, torch.float16)
    assert can_pack(CPU, torch.float32) is torch.backends.mkldnn.is_available()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not can_pack(CPU, torch.float32)
