"""What methods are called, and what each name says to a system."""

import pytest

from benchmarks.quality.methods import EngineChoice, Limits, Method, request_options, swept
from latentmas_core.errors import ConfigError

LIMITS = Limits(latent_steps=7)


def test_a_name_says_what_is_different_about_a_method() -> None:
    method = Method.parse("latent+adapters+latent_steps=20+carry=latents+merge=consecutive")
    options = request_options(method, LIMITS, {"judger": "mine"})
    assert (options["mode"], options["handoff"], options["latent_steps"]) == ("latent", "kv", 20)
    assert (options["carry"], options["merge"]) == ("latents", "consecutive")
    assert options["adapters"] == {"judger": "mine"}
    engine = Method.parse("latent+realign=off+transfer_dtype=int8").engine
    assert engine == EngineChoice(is_realigned=False, transfer_dtype="int8")
    assert Method.parse("latent+latent_steps=2").engine == EngineChoice()


def test_without_steps_of_its_own_a_method_takes_those_of_the_limits() -> None:
    options = request_options(Method.parse("latent"), LIMITS)
    assert options["latent_steps"] == 7
    assert "adapters" not in options


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("guess", "method 'guess' does not exist"),
        ("latent+", "has '' in it"),
        ("latent+carry", "has 'carry' in it"),
        ("latent+carry=", "has 'carry=' in it"),
        ("latent+carry=words", "carry got 'words'"),
        ("latent+latent_steps=-1", "latent_steps got '-1'"),
        ("latent+max_tokens=9", "cannot have max_tokens"),
        ("text+latent_steps=3", "cannot have latent_steps"),
        ("latent+carry=all+carry=latents", "says something twice"),
        ("latent+transfer_dtype=int4", "transfer_dtype got 'int4'"),
        ("text+transfer_dtype=int8", "cannot have transfer_dtype"),
        ("latent+handoff=text+transfer_dtype=int8", "handoff=text hands on none"),
        ("latent-embeddings+transfer_dtype=int8", "handoff=embeddings hands on none"),
    ],
)
def test_a_method_that_cannot_be_meant_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("+", r"\+")):
        Method.parse(name)


def test_a_sweep_turns_each_latent_method_into_one_per_value() -> None:
    names = [
        m.name for m in swept(["single", "latent"], {"latent_steps": [0, 5], "carry": ["all"]})
    ]
    assert names == ["single", "latent+latent_steps=0+carry=all", "latent+latent_steps=5+carry=all"]
    assert [m.without_steps for m in swept(["latent"], {"latent_steps": [5]})] == ["latent"]


def test_a_sweep_without_a_latent_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a latent method"):
        swept(["single", "text"], {"latent_steps": [0, 5]})
