"""Realignment against the formula of the paper, written out with an explicit inverse."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from latentmas_core.latent.realignment import (
    RIDGE,
    Realignment,
    alignment_matrix,
    is_tied,
    realignment_of,
)
from tests.engine.engines import load_plain

VOCAB_SIZE, HIDDEN_SIZE = 120, 16


def create_weight(seed: int, *, std: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return std * torch.randn(VOCAB_SIZE, HIDDEN_SIZE, generator=generator)


def create_hidden(num_rows: int = 5, seed: int = 9) -> torch.Tensor:
    return torch.randn(num_rows, HIDDEN_SIZE, generator=torch.Generator().manual_seed(seed))


def invert_explicitly(w_in: torch.Tensor, w_out: torch.Tensor) -> torch.Tensor:
    """W = (Wout^T Wout + ridge I)^-1 Wout^T Win, in float64."""
    w_in, w_out = w_in.double(), w_out.double()
    gram = w_out.T @ w_out + RIDGE * torch.eye(w_out.shape[1], dtype=torch.float64)
    return torch.linalg.inv(gram) @ w_out.T @ w_in


def test_matrix_equals_the_explicit_inverse() -> None:
    w_in, w_out = create_weight(0), create_weight(1)
    matrix = alignment_matrix(w_in, w_out)
    assert matrix.dtype is torch.float32
    assert_close(matrix.double(), invert_explicitly(w_in, w_out), atol=1e-5, rtol=0)


def test_ridge_is_part_of_the_matrix() -> None:
    w_in, w_out = create_weight(0, std=1e-3), create_weight(1, std=1e-3)
    matrix = alignment_matrix(w_in, w_out).double()
    assert_close(matrix, invert_explicitly(w_in, w_out), atol=1e-5, rtol=0)
    without_ridge = torch.linalg.lstsq(w_out.double(), w_in.double()).solution
    assert (matrix - without_ridge).abs().max() > 1e-3


def test_matrix_of_half_precision_weights_is_solved_in_fp32() -> None:
    w_in, w_out = create_weight(0).bfloat16(), create_weight(1).bfloat16()
    matrix = alignment_matrix(w_in, w_out)
    assert_close(matrix.double(), invert_explicitly(w_in, w_out), atol=1e-5, rtol=0)


def test_aligned_rows_equal_the_formula() -> None:
    w_in, w_out, hidden = create_weight(0), create_weight(1), create_hidden()
    aligned = Realignment.from_embeddings(w_in, w_out)(hidden)
    for row, latent in zip(hidden, aligned, strict=True):
        expected = row.double() @ invert_explicitly(w_in, w_out)
        expected = expected / expected.norm() * w_in.double().norm(dim=1).mean()
        assert_close(latent.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("is_on", [True, False])
def test_aligned_rows_have_the_mean_norm_of_the_input_embeddings(is_on: bool) -> None:
    w_in = create_weight(0)
    aligned = Realignment.from_embeddings(w_in, create_weight(1), is_on=is_on)(create_hidden())
    assert_close(aligned.norm(dim=-1), w_in.norm(dim=-1).mean().expand(5))


def test_switching_it_off_leaves_only_the_rescale() -> None:
    w_in, w_out, hidden = create_weight(0), create_weight(1), create_hidden()
    off = Realignment.from_embeddings(w_in, w_out, is_on=False)
    assert off.matrix is None
    assert_close(nn.functional.normalize(off(hidden)), nn.functional.normalize(hidden))
    on = Realignment.from_embeddings(w_in, w_out)
    assert (on(hidden) - off(hidden)).abs().max() > 0.1


def test_tied_embeddings_skip_the_product_that_would_change_nothing() -> None:
    weight, hidden = create_weight(0), create_hidden()
    tied = Realignment.from_embeddings(weight, weight)
    assert tied.matrix is None
    with_product = Realignment(alignment_matrix(weight, weight), tied.target_norm)
    assert_close(tied(hidden), with_product(hidden), atol=1e-5, rtol=0)


def test_equal_weights_in_two_places_are_tied() -> None:
    weight = create_weight(0)
    assert is_tied(weight, weight)
    assert is_tied(weight, weight.clone())
    assert not is_tied(weight, create_weight(1))
    assert not is_tied(weight, weight[:-1].clone())


def test_rows_keep_their_dtype_and_stay_finite_at_zero() -> None:
    realign = Realignment.from_embeddings(create_weight(0), create_weight(1))
    assert realign(create_hidden().bfloat16()).dtype is torch.bfloat16
    assert torch.equal(realign(torch.zeros(2, HIDDEN_SIZE)), torch.zeros(2, HIDDEN_SIZE))


def test_rows_do_not_depend_on_each_other() -> None:
    realign, hidden = (
        Realignment.from_embeddings(create_weight(0), create_weight(1)),
        create_hidden(),
    )
    assert_close(realign(hidden)[2:3], realign(hidden[2:3]))


@pytest.mark.parametrize(
    ("fixture", "has_matrix"), [("tiny_llama", False), ("tiny_qwen2", True), ("tiny_qwen3", True)]
)
def test_models_with_untied_embeddings_have_a_matrix(
    fixture: str, has_matrix: bool, request: pytest.FixtureRequest
) -> None:
    model = load_plain(request.getfixturevalue(fixture)).model
    assert (realignment_of(model, is_on=True).matrix is not None) is has_matrix
    assert realignment_of(model, is_on=False).matrix is None
