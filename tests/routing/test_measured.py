"""The measurement of the router, and that it finds what docs/routing.md says."""

import re
from pathlib import Path

import pytest

from benchmarks.routing import (
    QUESTIONS,
    Answer,
    Labelled,
    ask_all,
    read_questions,
    report_lines,
    wilson,
)
from latentmas_core.routing.classifier import Classification
from latentmas_core.routing.domains import Domain

PAGE = Path(__file__).parents[2] / "docs" / "routing.md"
DEVELOPMENT = QUESTIONS.with_name("development_questions.jsonl")


def without_times(lines):
    return [line for line in lines if not line.startswith("time per question")]


def test_reading_in_the_docs_is_the_one_that_is_read():
    told = re.findall(r"```\n(given .*?)\n```", PAGE.read_text(), re.DOTALL)
    read = report_lines(ask_all(read_questions(QUESTIONS)))
    assert [without_times(one.split("\n")) for one in told] == [without_times(read)]


def test_there_are_enough_questions_of_every_domain_and_none_is_there_twice():
    questions = read_questions(QUESTIONS)
    alone = [question.domains for question in questions if len(question.domains) == 1]
    assert all(alone.count((domain,)) == 30 for domain in Domain)
    texts = [one.question for one in (*questions, *read_questions(DEVELOPMENT))]
    assert len(set(texts)) == len(texts)


def test_interval_is_wilsons():
    low, high = wilson(8, 10)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=5e-4)
    assert wilson(0, 10).low == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("given", "found", "is_right"),
    [
        (["math"], ["math"], True),
        (["math"], ["math", "code"], True),  # an expert more, but the right one leads
        (["math"], ["code", "math"], False),
        (["math", "code"], ["code", "math"], True),
        (["math", "code"], ["math"], False),
        (["math", "code"], ["math", "code", "medical"], False),
    ],
)
def test_right_is_the_clearest_of_one_and_exactly_these_of_several(given, found, is_right):
    answer = Answer(
        Labelled("Why?", tuple(map(Domain, given))),
        Classification(tuple(map(Domain, found)), {}, ()),
        seconds=0.0,
    )
    assert answer.is_right == is_right
