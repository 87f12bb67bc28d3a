"""What a merge of adapters can be asked for. Knows no tensors and no files."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeGuard

from latentmas_core.errors import ConfigError

MAX_SEED = 2**63 - 1


class MergeMethod(StrEnum):
    """How adapters become one; ``merge_adapters`` has the formulas."""

    LINEAR = "linear"
    CAT = "cat"
    SVD = "svd"
    TIES = "ties"
    DARE = "dare"
    DARE_TIES = "dare_ties"


class MajoritySign(StrEnum):
    """Who wins where signs differ: the larger sum of values, or the larger number of adapters."""

    TOTAL = "total"
    FREQUENCY = "frequency"


_METHODS_WITH_OPTION: Mapping[str, tuple[MergeMethod, ...]] = {
    "rank": (MergeMethod.SVD,),
    "density": (MergeMethod.TIES, MergeMethod.DARE, MergeMethod.DARE_TIES),
    "majority_sign": (MergeMethod.TIES, MergeMethod.DARE_TIES),
    "seed": (MergeMethod.DARE, MergeMethod.DARE_TIES),
}


@dataclass(frozen=True)
class MergeOptions:
    """A method and what it needs; an option that its method has no use for is a ConfigError.

    rank: of an svd merge; left out, the largest rank that goes in. density: the share of values
    that ties and dare keep, in (0, 1]; they need it. majority_sign: total where left out. seed: of
    what dare drops; 0 where left out, so a merge gives the same files whenever it is repeated.
    """

    method: MergeMethod
    rank: int | None = None
    density: float | None = None
    majority_sign: MajoritySign | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_known("method", self.method, MergeMethod)
        for name, methods in _METHODS_WITH_OPTION.items():
            if getattr(self, name) is not None and self.method not in methods:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, which method {str(self.method)!r} has no "
                    f"use for; it belongs to {', '.join(methods)}. Leave it out.",
                    param=name,
                )
        if self.density is not None or self.method in _METHODS_WITH_OPTION["density"]:
            _check_density(self.method, self.density)
        if self.majority_sign is not None:
            _check_known("majority_sign", self.majority_sign, MajoritySign)
        if self.rank is not None:
            _check_whole("rank", self.rank, 1, None)
        if self.seed is not None:
            _check_whole("seed", self.seed, 0, MAX_SEED)


def _check_known(name: str, value: object, kind: type[StrEnum]) -> None:
    if value not in list(kind):
        raise ConfigError(
            f"{name} is {value!r}; allowed are {', '.join(kind)}. Choose one of them.", param=name
        )


def _check_density(method: MergeMethod, density: float | None) -> None:
    if density is None:
        raise ConfigError(
            f"density is missing; method {str(method)!r} keeps that share of the values. Give a "
            "number above 0, at most 1.",
            param="density",
        )
    if not is_finite_number(density) or not 0 < density <= 1:
        raise ConfigError(
            f"density is {density!r}; it must be above 0 and at most 1, the share of the values "
            "that are kept. Give 0.5 to keep half of them.",
            param="density",
        )


def _check_whole(name: str, value: int, low: int, high: int | None) -> None:
    if type(value) is not int or value < low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"{low} to {high}"
        raise ConfigError(
            f"{name} is {value!r}; it must be a whole number, {limit}. Give another.", param=name
        )


def is_finite_number(value: object) -> TypeGuard[float]:
    """True and False are none, nor is an integer beyond the largest float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max
