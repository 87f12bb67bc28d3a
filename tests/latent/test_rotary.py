"""Moving rotated keys equals rotating the unrotated ones at the other positions."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from latentmas_core.latent.rotary import rotate_keys
from tests.baselines.models import YARN
from tests.engine.engines import load_plain
from tests.factories import make_tiny_model

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROTARIES = {"default": None, "yarn": YARN, "llama3": LLAMA3}

NUM_ROWS, NUM_HEADS, HEAD_DIM = 9, 2, 16


@pytest.fixture(scope="module", params=ROTARIES)
def rotary(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> torch.nn.Module:
    """The rotary embedding of a model, as transformers builds it."""
    parameters = ROTARIES[request.param]
    options = {"rope_parameters": parameters} if parameters else {}
    folder: Path = make_tiny_model(tmp_path_factory.mktemp(request.param), "llama", **options)
    return load_plain(folder).model.model.rotary_emb


def create_keys(seed: int = 0) -> torch.Tensor:
    return torch.randn(NUM_ROWS, NUM_HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(seed))


def rotate_at(rotary: torch.nn.Module, keys: torch.Tensor, first_position: int) -> torch.Tensor:
    """Unrotated keys [num_rows, num_heads, head_dim], rotated by the model itself."""
    positions = torch.arange(first_position, first_position + len(keys))[None]
    cos, sin = rotary(keys, positions)
    rotated, _ = apply_rotary_pos_emb(
        keys.transpose(0, 1)[None], keys.transpose(0, 1)[None], cos, sin
    )
    return rotated[0].transpose(0, 1)


@pytest.mark.parametrize("shift", [1, 7, 113, 1500])
def test_moved_keys_equal_keys_rotated_at_the_new_positions(
    rotary: torch.nn.Module, shift: int
) -> None:
    keys = create_keys()
    moved = rotate_keys(rotate_at(rotary, keys, 5), shift, rotary.inv_freq)
    # The tables of the model are made in fp32: at position 1500 they are off by up to 1e-4.
    assert_close(moved, rotate_at(rotary, keys, 5 + shift), atol=3e-6 + 1e-7 * shift, rtol=0)


def test_scaled_tables_are_not_applied_twice(rotary: torch.nn.Module) -> None:
    keys = rotate_at(rotary, create_keys(), 3)
    moved = rotate_keys(keys, 40, rotary.inv_freq)
    assert_close(moved.norm(dim=-1), keys.norm(dim=-1), atol=1e-5, rtol=0)


def test_yarn_scales_the_tables_so_that_the_test_above_can_fail(
    tmp_path: Path,
) -> None:
    folder = make_tiny_model(tmp_path, "llama", rope_parameters=YARN)
    assert load_plain(folder).model.model.rotary_emb.attention_scaling > 1.1


def test_moving_back_restores_the_keys(rotary: torch.nn.Module) -> None:
    keys = create_keys()
    back = rotate_keys(rotate_keys(keys, 321, rotary.inv_freq), -321, rotary.inv_freq)
    assert_close(back, keys, atol=2e-6, rtol=0)


def test_one_move_in_fp32_is_off_by_less_than_1e_5(rotary: torch.nn.Module) -> None:
    keys, shift = create_keys(), 1999
    exact = rotate_keys_in_float64(keys, shift, rotary.inv_freq)
    error = (rotate_keys(keys, shift, rotary.inv_freq).double() - exact).abs().max()
    assert error < 1e-5


def test_bfloat16_keys_are_moved_in_fp32_and_rounded_once(rotary: torch.nn.Module) -> None:
    keys = create_keys().bfloat16()
    moved = rotate_keys(keys, 77, rotary.inv_freq)
    assert moved.dtype is torch.bfloat16
    assert torch.equal(moved, rotate_keys(keys.float(), 77, rotary.inv_freq).bfloat16())


def test_moving_nowhere_is_free() -> None:
    keys = create_keys()
    assert rotate_keys(keys, 0, torch.ones(HEAD_DIM // 2)) is keys


def test_moving_leaves_the_given_keys_alone() -> None:
    keys = create_keys()
    rotate_keys(keys, 3, torch.ones(HEAD_DIM // 2))
    assert torch.equal(keys, create_keys())


def test_dimensions_beyond_the_rotary_ones_stay_as_they_are() -> None:
    keys = create_keys()
    moved = rotate_keys(keys, 3, torch.ones(3))
    assert torch.equal(moved[..., 6:], keys[..., 6:])
    assert (moved[..., :6] - keys[..., :6]).abs().min() > 0


def rotate_keys_in_float64(keys: torch.Tensor, shift: int, inv_freq: torch.Tensor) -> torch.Tensor:
    """R(shift) as a matrix per pair of dimensions."""
    angles = shift * inv_freq.double()
    first, second = keys.double().chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), dim=-1)
