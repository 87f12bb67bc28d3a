"""An unfamiliar model that the engine would run wrongly is refused by name, not served."""

from pathlib import Path

import pytest

from latentmas_core.errors import ModelError
from tests.engine.engines import make_engine
from tests.factories import make_tiny_model


@pytest.mark.parametrize(
    ("architecture", "problem"),
    [
        ("diffllama", "is off by .* from transformers"),  # the difference of two attentions
        ("jetmoe", "fails on a first step"),
    ],
)
def test_model_that_would_answer_wrongly_is_refused(
    tmp_path: Path, architecture: str, problem: str
) -> None:
    model = make_tiny_model(tmp_path, architecture)
    with pytest.raises(ModelError, match=problem) as caught:
        make_engine(model)
    assert caught.value.param == "model_name"
    assert str(model) in str(caught.value)
