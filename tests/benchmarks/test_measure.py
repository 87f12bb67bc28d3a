"""Medians, bars, rounds, and what counts as the same answer."""

import pytest

from benchmarks.measure import (
    Agreement,
    Bar,
    Comparison,
    Figures,
    Missing,
    compare_answers,
    interleave,
)
from benchmarks.questions import NUM_QUESTIONS, questions
from benchmarks.table import table_lines


def make_comparison(
    *,
    dtype: str = "float32",
    bar: Bar | None = None,
    agreement: Agreement | None = None,
) -> Comparison:
    return Comparison(
        name="one_request",
        what="one request",
        dtype=dtype,
        unit="s",
        ours=Figures("engine", [1.0, 9.0, 2.0]),
        baseline=Figures("plain loop", [4.0, 4.0, 5.0]),
        bar=bar,
        agreement=agreement,
    )


def test_the_ratio_is_that_of_the_medians() -> None:
    assert make_comparison().ratio == 0.5


@pytest.mark.parametrize(
    ("bar", "is_met"),
    [(Bar("<=", 0.5), True), (Bar("<=", 0.4), False), (Bar(">=", 0.6), False), (None, None)],
)
def test_a_bar_is_met_on_its_side_of_the_limit(bar: Bar | None, is_met: bool | None) -> None:
    assert make_comparison(bar=bar).is_bar_met is is_met


def test_every_second_round_goes_the_other_way_and_the_first_one_is_dropped() -> None:
    order: list[str] = []

    def side(name: str) -> int:
        order.append(name)
        return len(order)

    results = interleave(2, {"a": lambda _: side("a"), "b": lambda _: side("b")})
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert results == {"a": [4, 5], "b": [3, 6]}


def test_answers_are_compared_token_for_token() -> None:
    agreement = compare_answers([[1, 2], [3, 4], [5]], [[1, 2], [3, 9]])
    assert (agreement.num_answers, agreement.num_identical) == (2, 1)
    assert agreement.first_difference == "token 1 of answer 1 is 4 here and 9 there"
    assert compare_answers([[1]], [[1, 2]]).first_difference == (
        "answer 0 has 1 tokens here and 2 there"
    )


@pytest.mark.parametrize(("dtype", "is_wrong"), [("float32", True), ("bfloat16", False)])
def test_other_answers_are_wrong_in_fp32_alone(dtype: str, is_wrong: bool) -> None:
    differs = make_comparison(dtype=dtype, agreement=Agreement(2, 1, "token 0 is 1 and 2"))
    assert differs.is_wrong is is_wrong
    assert not make_comparison(dtype=dtype, agreement=Agreement(2, 2)).is_wrong


def test_the_table_has_a_block_per_dtype_and_says_what_is_missing() -> None:
    measured = [
        make_comparison(bar=Bar("<=", 0.6), agreement=Agreement(2, 2)),
        make_comparison(dtype="bfloat16", bar=Bar("<=", 0.4)),
        Missing("modes", "modes", "bfloat16", "the side is out of order", is_failure=True),
    ]
    lines = list(table_lines(measured))
    assert lines.index("float32") < lines.index("bfloat16")
    assert [line.split()[-4:] for line in lines if " s " in line] == [
        ["<=", "0.6", "yes", "2/2"],
        ["0.500", "<=", "0.4", "NO"],
    ]
    assert any(line.split() == ["modes", "failed"] for line in lines)
    assert "  the side is out of order" in lines


def test_no_question_is_asked_twice() -> None:
    asked = [q for index in range(20) for q in questions(NUM_QUESTIONS, round_index=index)]
    assert len(set(asked)) == len(asked)
    with pytest.raises(ValueError, match="17 questions"):
        questions(NUM_QUESTIONS + 1, round_index=0)
