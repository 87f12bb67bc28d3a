"""The key of a mix: what the queue is fair to, and what stands in the keys of all caches."""

import pytest

from latentmas_core.errors import ConfigError
from latentmas_core.lora.mix import AdapterMix, AdapterUse


def test_key_tells_digests_and_weights_and_is_read_back() -> None:
    mix = AdapterMix((AdapterUse("d1", 0.5), AdapterUse("d2")))
    assert mix.key == "d1*0.5+d2"
    assert AdapterMix.from_key(mix.key) == mix
    assert AdapterMix.from_key("base") == AdapterMix()


def test_mix_refuses_an_adapter_twice_and_weights_that_are_no_numbers() -> None:
    with pytest.raises(ConfigError, match="twice"):
        AdapterMix((AdapterUse("d"), AdapterUse("d", 2.0)))
    with pytest.raises(ConfigError, match="nan"):
        AdapterMix((AdapterUse("d", float("nan")),))
