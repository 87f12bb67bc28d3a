"""The grader beside a person: every answer of graded_answers.jsonl was labelled by hand."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.grading import Kind, grade
from benchmarks.quality.number_answers import Number, number_of
from latentmas_core.errors import ConfigError

LABELLED = [
    json.loads(line)
    for line in (Path(__file__).parent / "graded_answers.jsonl").read_text("utf-8").splitlines()
]


def test_at_least_a_hundred_answers_are_labelled_and_no_two_are_the_same() -> None:
    assert len({(one["kind"], one["gold"], one["answer"]) for one in LABELLED}) == len(LABELLED)
    assert len(LABELLED) >= 100


@pytest.mark.parametrize(
    "labelled", LABELLED, ids=[f"{i}-{one['kind']}-{one['case']}" for i, one in enumerate(LABELLED)]
)
def test_the_grader_agrees_with_the_hand_label(labelled: dict[str, Any]) -> None:
    found = grade(labelled["answer"], labelled["gold"], Kind(labelled["kind"]))
    assert found.is_correct is labelled["is_correct"], found


def test_a_refusal_gives_no_answer_rather_than_a_wrong_one() -> None:
    assert grade("I cannot say which of the 18 it is.", "18", Kind.NUMBER).given is None
    assert grade("I'm sorry, I can't say.", "A", Kind.LETTER).given is None


def test_what_was_found_is_told_with_a_wrong_grade() -> None:
    assert grade("The answer is 1 1/2.", "2", Kind.NUMBER) == ("3/2", False)
    assert grade("The answer is (B).", "C", Kind.LETTER) == ("B", False)


def test_numbers_are_exact() -> None:
    assert number_of("The answer is 0.1") == Number(Fraction(1, 10))
    assert number_of("The answer is 12.5%") == Number(Fraction(25, 2), is_percent=True)


@pytest.mark.parametrize(
    "answer", ["The answer is 1/0.", "1e999999999", "9" * 5000, "\\boxed{" * 50]
)
def test_a_hostile_answer_is_graded_like_any_other(answer: str) -> None:
    assert grade(answer, "18", Kind.NUMBER).is_correct is False


def test_a_gold_answer_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="gold answer 'many' is no number"):
        grade("18", "many", Kind.NUMBER)
