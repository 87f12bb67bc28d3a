"""The key of a mix: what the queue is fair to, and what stands in the keys of all caches."""

import pytest

from latentmas_core.errors import ConfigError
from latentmas_core.lora.mix import AdapterMix, AdapterUse


def test_key_tells_digests_and_weights_and_is_read_back() -> None:
    mix = AdapterMix((AdapterUse("d1", 0.5), AdapterUse("d2")))
    assert mix.key == "d1*0.5+d2"
    assert AdapterMix.from_key(mix.key) == mix
    assert AdapterMix.from_key("base") == AdapterMix()


@pytest.mark.parametrize("weight", [0.1, 1 / 3, 1e-20, -5e-324, 100.0, -100.0, 0.0, 2])
def test_any_weight_that_is_allowed_is_read_back_from_the_key(weight: float) -> None:
    mix = AdapterMix((AdapterUse("d1", weight), AdapterUse("d2", -weight)))
    assert AdapterMix.from_key(mix.key) == mix


@pytest.mark.parametrize("weight", [1e16, -1e20, 100.1, float("inf")])
def test_weight_out_of_range_is_refused_with_the_range(weight: float) -> None:
    """1e16 is written with a "+", which would part the key in the wrong place."""
    with pytest.raises(ConfigError, match="allowed are -100 to 100"):
        AdapterMix((AdapterUse("d1", weight),))


def test_mix_refuses_an_adapter_twice_and_weights_that_are_no_numbers() -> None:
    with pytest.raises(ConfigError, match="twice"):
        AdapterMix((AdapterUse("d"), AdapterUse("d", 2.0)))
    with pytest.raises(ConfigError, match="nan"):
        AdapterMix((AdapterUse("d", float("nan")),))
