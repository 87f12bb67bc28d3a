"""Keeps adapters known from the first to the last turn of an answer, whoever unloads them.

Used by the engine's thread alone; between turns nothing else would hold them.
"""

from collections.abc import Collection

from latentmas_core.lora.cache import AdapterCache
from latentmas_core.lora.mix import AdapterMix, AdapterUse


class AdapterHold:
    """``begin``, then ``end``, once each; adapters that are not there at ``begin`` are not held."""

    def __init__(self, holds: "AdapterHolds", digests: Collection[str]) -> None:
        self._holds = holds
        self._digests = digests
        self._mix = AdapterMix()

    def begin(self) -> None:
        self._mix = self._holds.take(self._digests)

    def end(self) -> None:
        self._holds.give_back(self._mix)


class AdapterHolds:
    """All holds of one cache."""

    def __init__(self, adapters: AdapterCache) -> None:
        self._adapters = adapters
        self.mixes: list[AdapterMix] = []

    def prepare(self, digests: Collection[str]) -> AdapterHold:
        """May be called from any thread."""
        return AdapterHold(self, tuple(dict.fromkeys(digests)))

    def take(self, digests: Collection[str]) -> AdapterMix:
        known = {spec.digest for spec, _ in self._adapters.listing()}
        mix = AdapterMix(tuple(AdapterUse(digest) for digest in digests if digest in known))
        self._adapters.hold(mix)
        self.mixes.append(mix)
        return mix

    def give_back(self, mix: AdapterMix) -> None:
        self.mixes.remove(mix)
        self._adapters.drop(mix)
