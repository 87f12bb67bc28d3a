"""Tokens are drawn from exactly the distribution that the options describe."""

import random

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from latentmas_core.config import SamplingParams
from latentmas_core.engine.sampler import TokenChooser, choose_tokens

VOCAB_SIZE = 40
NUM_DRAWS = 4000


class FixedDraws(random.Random):
    """A generator whose one number is given."""

    def __init__(self, draw: float) -> None:
        super().__init__()
        self.draw = draw

    def random(self) -> float:
        return self.draw


def create_logits(num_rows: int = 1, *, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))


def create_choosers(*params: SamplingParams) -> list[TokenChooser]:
    return [TokenChooser.from_params(p) for p in params]


def frequencies_of(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """How often each token is chosen when the draws cover [0, 1) evenly, [vocab_size]."""
    draws = [(number + 0.5) / NUM_DRAWS for number in range(NUM_DRAWS)]
    choosers = [TokenChooser(params, FixedDraws(draw)) for draw in draws]
    tokens = choose_tokens(logits.expand(NUM_DRAWS, -1), choosers)
    return torch.bincount(torch.tensor(tokens), minlength=VOCAB_SIZE) / NUM_DRAWS


def probabilities_of(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The distribution by the warpers of transformers, [vocab_size]."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k is not None:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        warpers.append(TopPLogitsWarper(params.top_p))
    no_ids = torch.zeros(1, 0, dtype=torch.long)
    return warpers(no_ids, logits).softmax(dim=-1)[0]


def test_greedy_takes_the_likeliest_of_each_row() -> None:
    logits = create_logits(6)
    tokens = choose_tokens(logits, create_choosers(*[SamplingParams()] * 6))
    assert tokens == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.6),
        SamplingParams(temperature=2.0),
        SamplingParams(temperature=1.0, top_k=1),
        SamplingParams(temperature=1.0, top_k=5),
        SamplingParams(temperature=1.0, top_k=VOCAB_SIZE + 60),
        SamplingParams(temperature=1.0, top_p=0.9),
        SamplingParams(temperature=0.6, top_p=0.5),
        SamplingParams(temperature=1.5, top_p=1e-6),
        SamplingParams(temperature=1.3, top_k=6, top_p=0.8),
    ],
    ids=lambda params: f"T{params.temperature}-k{params.top_k}-p{params.top_p}",
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_frequencies_equal_the_distribution_of_the_options(
    params: SamplingParams, seed: int
) -> None:
    logits = create_logits(seed=seed)
    expected = probabilities_of(logits, params)
    actual = frequencies_of(logits, params)
    assert (actual - expected).abs().max() <= 1.5 / NUM_DRAWS
    assert not actual[expected == 0].any()


def test_top_p_counts_the_mass_that_top_k_leaves() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    params = SamplingParams(temperature=1.0, top_k=2, top_p=0.5)
    chosen = choose_tokens(logits, [TokenChooser(params, FixedDraws(0.999))])
    assert chosen == [0]  # 0.4 / 0.7 is more than half


def test_draw_next_to_one_stays_within_what_is_left() -> None:
    logits = create_logits()
    params = SamplingParams(temperature=1.0, top_k=3)
    (token,) = choose_tokens(logits, [TokenChooser(params, FixedDraws(1.0))])
    assert token in logits.topk(3).indices[0].tolist()


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-40, 1e-300])
def test_temperature_next_to_zero_is_greedy(temperature: float) -> None:
    logits = 100 * create_logits(3)
    params = SamplingParams(temperature=temperature, top_p=0.9, seed=1)
    tokens = choose_tokens(logits, create_choosers(*[params] * 3))
    assert tokens == logits.argmax(dim=-1).tolist()


def test_equally_likely_tokens_are_all_drawn() -> None:
    frequencies = frequencies_of(torch.zeros(1, VOCAB_SIZE), SamplingParams(temperature=1.0))
    assert (frequencies - 1 / VOCAB_SIZE).abs().max() < 1e-3


def test_half_precision_logits_are_sampled_in_fp32() -> None:
    logits = create_logits().bfloat16()
    params = SamplingParams(temperature=1.0, top_p=0.9)
    expected = probabilities_of(logits.float(), params)
    assert (frequencies_of(logits, params) - expected).abs().max() <= 1.5 / NUM_DRAWS


def answer(params: SamplingParams, *, others: int = 0, num_tokens: int = 30) -> list[int]:
    """Tokens of one request at row ``others``, in a batch with that many before and behind it."""
    (chooser,) = create_choosers(params)
    neighbours = [
        SamplingParams(temperature=1.0, seed=number, top_k=3) if number % 2 else SamplingParams()
        for number in range(others)
    ]
    before, behind = create_choosers(*neighbours), create_choosers(*neighbours)
    tokens = []
    for number in range(num_tokens):
        logits = create_logits(2 * others + 1, seed=100 + number)
        logits[others] = create_logits(seed=number)[0]
        tokens.append(choose_tokens(logits, [*before, chooser, *behind])[others])
    return tokens


def test_same_seed_says_the_same() -> None:
    params = SamplingParams(temperature=1.0, seed=7)
    assert answer(params) == answer(params)


def test_different_seeds_say_different_things() -> None:
    answers = [answer(SamplingParams(temperature=1.0, seed=seed)) for seed in range(4)]
    assert len(set(map(tuple, answers))) == 4


def test_without_a_seed_answers_differ() -> None:
    assert answer(SamplingParams(temperature=1.0)) != answer(SamplingParams(temperature=1.0))


@pytest.mark.parametrize("others", [1, 5])
def test_what_shares_the_batch_does_not_matter(others: int) -> None:
    params = SamplingParams(temperature=0.9, top_p=0.95, top_k=20, seed=3)
    assert answer(params, others=others) == answer(params)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_row_that_is_not_finite_leaves_the_others_their_tokens(number: float) -> None:
    params = SamplingParams(temperature=0.9, top_p=0.95, seed=3)
    logits = create_logits(3)
    expected = choose_tokens(logits, create_choosers(params, params, params))
    logits[1] = number
    tokens = choose_tokens(logits, create_choosers(params, params, params))
    assert (tokens[0], tokens[2]) == (expected[0], expected[2])


def test_one_number_is_drawn_per_token() -> None:
    params = SamplingParams(temperature=1.0, seed=11)
    (chooser,) = create_choosers(params)
    for number in range(3):
        choose_tokens(create_logits(seed=number), [chooser])
    expected = random.Random(11)
    for _ in range(3):
        expected.random()
    assert chooser.generator.random() == expected.random()
