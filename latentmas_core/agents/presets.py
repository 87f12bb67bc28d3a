"""The roles that are shipped: the numbers of each. Their words stand in prompts.yaml."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from latentmas_core.agents.role_prompts import role_prompts
from latentmas_core.errors import NotFoundError


@dataclass(frozen=True)
class Preset:
    """``lora_rank`` is the rank that an adapter for this role is trained with."""

    role: str
    lora_rank: int
    temperature: float
    max_tokens: int


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "planner": Preset("problem decomposition", 32, 0.7, 400),
        "critic": Preset("reasoning evaluation", 32, 0.5, 350),
        "refiner": Preset("solution refinement", 48, 0.6, 450),
        "judger": Preset("final decision", 64, 0.2, 500),
        "medical": Preset("clinical expertise", 64, 0.4, 600),
        "math": Preset("quantitative reasoning", 48, 0.3, 500),
        "coder": Preset("code generation", 64, 0.4, 800),
    }
)


def preset_values(name: str) -> dict[str, Any]:
    """All fields of the shipped agent ``name``, ready to be overridden."""
    if name not in PRESETS:
        raise NotFoundError(
            f"agent preset {name!r} does not exist. Known: {', '.join(PRESETS)}.", param="agent"
        )
    prompts = role_prompts()[name]
    return {
        "name": name,
        "system_prompt": prompts.system,
        "instructions": prompts.instructions,
        **asdict(PRESETS[name]),
    }
