"""The ways to answer that are compared, and the limits that hold for all of them.

A method is a base and, behind plus signs, what is different about it: ``latent``,
``latent+adapters``, ``latent+latent_steps=20+carry=latents``.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field

from latentmas_core.config import MAX_LATENT_STEPS, FrozenModel
from latentmas_core.errors import ConfigError
from latentmas_core.latent.merge_rule import MergeRule
from latentmas_core.request import DEFAULT_PIPELINE, Carry, Handoff, Mode
from latentmas_core.validation import validated

BASES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "single": {"mode": "single"},
        "text": {"mode": "text"},
        "latent": {"mode": "latent"},
        "latent-embeddings": {"mode": "latent", "handoff": "embeddings"},
    }
)
ADAPTERS = "adapters"


class Limits(FrozenModel):
    """The same for every method. ``max_tokens`` is what each speaking agent may write."""

    pipeline: str = DEFAULT_PIPELINE
    max_tokens: int = Field(default=256, ge=1)
    latent_steps: int = Field(default=10, ge=0, le=MAX_LATENT_STEPS)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    seed: int = Field(default=0, ge=0)


class EngineChoice(NamedTuple):
    """What a method needs of its engine; methods that need the same share one."""

    is_realigned: bool = True
    transfer_dtype: Literal["model", "int8"] = "model"


class Method(FrozenModel):
    """A way to answer. ``latent_steps`` of None are those of the limits, ``merge`` of None is the
    pipeline's; ``realign`` and ``transfer_dtype`` are matters of the engine, everything else one
    of the request."""

    name: str
    mode: Mode
    adapters: bool = False
    handoff: Handoff = Handoff.KV
    latent_steps: int | None = Field(default=None, ge=0, le=MAX_LATENT_STEPS)
    carry: Carry = Carry.ALL
    merge: MergeRule | None = None
    realign: bool = True
    transfer_dtype: Literal["model", "int8"] = "model"

    @classmethod
    def parse(cls, name: str) -> Self:
        """``latent+carry=latents``; ConfigError for an unknown base, or for what it cannot have."""
        base, *parts = name.split("+")
        if base not in BASES:
            raise ConfigError(
                f"method {name!r} does not exist. Known: {', '.join(BASES)}, and what is different "
                f"behind plus signs, as in latent+latent_steps=20.",
                param="methods",
            )
        fields = dict(_field_of(part, name) for part in parts)
        is_latent = BASES[base]["mode"] == Mode.LATENT
        if len(fields) < len(parts):
            raise ConfigError(
                f"method {name!r} says something twice. Say it once.", param="methods"
            )
        strange = set(fields) - {ADAPTERS, *(LATENT_FIELDS if is_latent else ())}
        if strange:
            raise ConfigError(
                f"method {name!r} cannot have {', '.join(sorted(strange))}. Latent methods can "
                f"have {', '.join(LATENT_FIELDS)}; all can have {ADAPTERS}.",
                param="methods",
            )
        method = validated(cls, {"name": name, **BASES[base], **fields})
        method._check_transfer()
        return method

    @property
    def engine(self) -> EngineChoice:
        return EngineChoice(self.realign, self.transfer_dtype)

    @property
    def without_steps(self) -> str:
        """The name that methods share which differ in latent steps alone."""
        return "+".join(p for p in self.name.split("+") if not p.startswith("latent_steps="))

    def _check_transfer(self) -> None:
        """8 bits are for keys and values: where none are handed on, nothing would be measured."""
        if self.transfer_dtype == "int8" and self.handoff is not Handoff.KV:
            raise ConfigError(
                f"method {self.name!r} rounds nothing: transfer_dtype=int8 is for keys and values, "
                f"and handoff={self.handoff} hands on none. Leave one of the two out, or sweep "
                "them in two runs.",
                param="transfer_dtype",
            )


LATENT_FIELDS = tuple(
    name for name in Method.model_fields if name not in ("name", "mode", ADAPTERS)
)


def swept(names: Sequence[str], sweep: Mapping[str, Sequence[object]]) -> list[Method]:
    """The methods, each latent one of them with every combination of the swept values.

    Raises ConfigError for a method that cannot be meant, and for a sweep without a latent method.
    """
    methods = [Method.parse(name) for name in names]
    if sweep and not any(method.mode is Mode.LATENT for method in methods):
        raise ConfigError(
            f"sweep of {', '.join(sweep)} needs a latent method; methods are {', '.join(names)}. "
            "Add latent.",
            param="sweep",
        )
    found = []
    for method in methods:
        values = product(*sweep.values()) if method.mode is Mode.LATENT else [()]
        for chosen in values:
            parts = [f"+{field}={value}" for field, value in zip(sweep, chosen, strict=False)]
            found.append(Method.parse(method.name + "".join(parts)))
    return list({method.name: method for method in found}.values())


def request_options(
    method: Method, limits: Limits, adapters: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Everything that a run is told beside the question; ``adapters`` are names by agent."""
    options = limits.model_dump() | {"mode": method.mode}
    if method.mode is Mode.LATENT:
        options |= {"handoff": method.handoff, "carry": method.carry, "merge": method.merge}
        if method.latent_steps is not None:
            options["latent_steps"] = method.latent_steps
    if method.adapters:
        options["adapters"] = dict(adapters)
    return options


def _field_of(part: str, name: str) -> tuple[str, str | bool]:
    field, equals, value = part.partition("=")
    if not field or bool(equals) != bool(value) or (not equals and field != ADAPTERS):
        raise ConfigError(
            f"method {name!r} has {part!r} in it. Write {ADAPTERS}, or a field and its value as in "
            "latent_steps=20.",
            param="methods",
        )
    return field, value or True
