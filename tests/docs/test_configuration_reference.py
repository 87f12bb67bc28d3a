"""The reference says what the models say."""

from pydantic import Field

from deployments.args import AppArgs
from tools.configuration_reference import PAGE, all_models, page


def test_the_reference_is_what_the_models_say():
    assert PAGE.read_text() == page(), "stale: python -m tools.configuration_reference"


def test_each_model_has_words_and_each_field_a_row():
    told = page()
    for model in all_models():
        assert model.__doc__, model
        assert f"## {model.__name__}\n" in told
        assert all(f"\n| `{name}` | " in told for name in model.model_fields)


def test_each_field_says_what_it_is():
    for model in all_models():
        for name, field in model.model_fields.items():
            assert len((field.description or "").split()) >= 2, f"{model.__name__}.{name}"


def test_a_field_that_is_added_makes_it_stale(monkeypatch):
    class Other(AppArgs):
        """Args with one more."""

        num_more: int = Field(default=3, ge=2)
        """How many more."""

    monkeypatch.setattr("tools.configuration_reference.ROOTS", (Other,))
    assert "| `num_more` | `int` | `3` | >= 2 | How many more. |" in page()
