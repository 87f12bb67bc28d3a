"""Intervals and tests against values that others published or that can be counted by hand."""

import pytest

from benchmarks.quality.significance import mcnemar_exact, wilson


def test_the_interval_of_a_share_is_that_of_wilson() -> None:
    # Centre (p + z^2 / 2n) / (1 + z^2 / n), computed by hand for 5 of 10.
    low, high = wilson(5, 10)
    assert low == pytest.approx(0.2366, abs=1e-4)
    assert high == pytest.approx(0.7634, abs=1e-4)


def test_no_and_all_right_answers_have_intervals_that_end_at_the_edge() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_without_questions_everything_is_possible() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_paired_test_is_the_binomial_one() -> None:
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 32)
    assert mcnemar_exact(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar_exact(5, 1) == mcnemar_exact(1, 5)
    assert 0.0 < mcnemar_exact(950, 1050) < 0.05  # 2**2000 is no floating point number


def test_methods_that_never_differ_are_not_told_apart() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(3, 3) == 1.0
