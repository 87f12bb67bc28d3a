"""Which adapters a turn runs with, and how much of each. Plain data, no tensors."""

from dataclasses import dataclass
from typing import NamedTuple

from latentmas_core.config import MAX_ADAPTER_WEIGHT
from latentmas_core.errors import ConfigError
from latentmas_core.latent.segment import BASE_ADAPTER


class AdapterUse(NamedTuple):
    """digest: the identity of an adapter (``LoRACheckpoint.digest``), weight: its factor."""

    digest: str
    weight: float = 1.0


@dataclass(frozen=True)
class AdapterMix:
    """y = x W^T + sum of weight * (the term of each adapter); empty is the base model."""

    uses: tuple[AdapterUse, ...] = ()

    def __post_init__(self) -> None:
        digests = self.digests
        if len(set(digests)) < len(digests):
            raise ConfigError(
                f"adapters {', '.join(digests)} name one adapter twice. Add its weights up.",
                param="adapters",
            )
        for digest, weight in self.uses:
            if not -MAX_ADAPTER_WEIGHT <= weight <= MAX_ADAPTER_WEIGHT:
                raise ConfigError(
                    f"weight of adapter {digest} is {weight}; allowed are {-MAX_ADAPTER_WEIGHT:g} "
                    f"to {MAX_ADAPTER_WEIGHT:g}. Choose one of them.",
                    param="adapters",
                )

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(use.digest for use in self.uses)

    @property
    def key(self) -> str:
        """Equal keys mean equal computations; it stands in the keys of all that is cached."""
        if not self.uses:
            return BASE_ADAPTER
        # repr is exact, and writes a "+" only into numbers that are larger than any weight.
        return "+".join(
            digest if weight == 1.0 else f"{digest}*{weight!r}" for digest, weight in self.uses
        )

    @property
    def is_base(self) -> bool:
        return not self.uses

    @classmethod
    def from_key(cls, key: str) -> "AdapterMix":
        """The inverse of ``key``."""
        if key == BASE_ADAPTER:
            return cls()
        parts = (part.partition("*") for part in key.split("+"))
        return cls(tuple(AdapterUse(digest, float(w) if w else 1.0) for digest, _, w in parts))


NO_ADAPTERS = AdapterMix()
