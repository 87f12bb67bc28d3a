"""What the lens saw, compared."""

import pytest


def assert_same_lens(ours, theirs):
    for step, other in zip(ours, theirs, strict=True):
        assert (step.index, step.norm) == (other.index, pytest.approx(other.norm, rel=1e-4))
        shares = [[token.probability for token in one.tokens] for one in (step, other)]
        assert shares[0] == pytest.approx(shares[1], abs=1e-4)
        assert step.tokens[0].id == other.tokens[0].id
