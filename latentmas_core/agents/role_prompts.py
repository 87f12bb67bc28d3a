"""Reads prompts.yaml: who each role is and what it is told. Data only, read once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import yaml

from latentmas_core.agents.instructions import Instructions

DEFAULT_ROLE = "default"


@dataclass(frozen=True)
class RolePrompts:
    """``system`` says who the agent is and may leave {role} open."""

    system: str
    instructions: Instructions


@cache
def role_prompts() -> Mapping[str, RolePrompts]:
    """What each shipped role is told, by its name."""
    text = files("latentmas_core.agents").joinpath("prompts.yaml").read_text(encoding="utf-8")
    return MappingProxyType({role: _parse(told) for role, told in yaml.safe_load(text).items()})


def default_prompts() -> RolePrompts:
    """What a role of the user's own is told, unless its config says otherwise."""
    return role_prompts()[DEFAULT_ROLE]


def _parse(told: dict[str, str]) -> RolePrompts:
    by_situation = {key: text for key, text in told.items() if key != "system"}
    return RolePrompts(told["system"], Instructions.model_validate(by_situation))
