"""AgentConfig: a role with its words, its sampling and its latent steps. Knows no engine."""

from typing import Any, Self

from pydantic import Field

from latentmas_core.agents.instructions import Instructions
from latentmas_core.agents.presets import PRESETS, preset_values
from latentmas_core.agents.role_prompts import default_prompts
from latentmas_core.config import MAX_LATENT_STEPS, AdapterChoice, FrozenModel
from latentmas_core.names import Name
from latentmas_core.validation import validated

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _default_system_prompt() -> str:
    return default_prompts().system


def _default_instructions() -> Instructions:
    return default_prompts().instructions


class AgentConfig(FrozenModel):
    """Who an agent is. A request may override its sampling and its latent steps."""

    name: Name
    """What pipelines, groups and requests call it."""
    role: str = Field(min_length=1)
    """What it is good at, in a few words; the default prompts use it."""
    system_prompt: str = Field(default_factory=_default_system_prompt)
    """Its system message; `{role}` stands for its role."""
    instructions: Instructions = Field(default_factory=_default_instructions)
    """What it is asked, by the situation that it is in."""
    temperature: float = Field(default=0.7, ge=0.0, le=2.0)
    """Of the text that it writes, where a request does not say; 0 takes the likeliest token each
    time."""
    top_p: float = Field(default=0.9, gt=0.0, le=1.0)
    """Of the text that it writes, where a request does not say: draw from the likeliest tokens that
    together have this share of the probability."""
    max_tokens: int = Field(default=512, ge=1)
    """The most tokens that it writes, where a request does not say."""
    latent_steps: int | None = Field(default=None, ge=0, le=MAX_LATENT_STEPS)
    """Latent steps that it takes, where a request does not say; null: those of the args if it
    thinks, none if it speaks."""
    adapter: AdapterChoice | None = None
    """A loaded LoRA adapter, or several with weights; null: the base model."""
    lora_rank: int = Field(default=32, ge=1)
    """The rank that an adapter for this role is trained with; the alpha is twice that. Nothing that
    is served depends on it."""
    lora_targets: tuple[str, ...] = LORA_TARGETS
    """The layers that an adapter for this role is trained on."""

    @property
    def lora_alpha(self) -> int:
        return 2 * self.lora_rank

    @classmethod
    def planner(cls, **overrides: Any) -> Self:
        """Breaks the problem down."""
        return cls.preset("planner", **overrides)

    @classmethod
    def critic(cls, **overrides: Any) -> Self:
        """Evaluates the reasoning so far."""
        return cls.preset("critic", **overrides)

    @classmethod
    def refiner(cls, **overrides: Any) -> Self:
        """Refines the solution."""
        return cls.preset("refiner", **overrides)

    @classmethod
    def judger(cls, **overrides: Any) -> Self:
        """Decides and answers."""
        return cls.preset("judger", **overrides)

    @classmethod
    def medical(cls, **overrides: Any) -> Self:
        """Clinical expert."""
        return cls.preset("medical", **overrides)

    @classmethod
    def math(cls, **overrides: Any) -> Self:
        """Quantitative expert."""
        return cls.preset("math", **overrides)

    @classmethod
    def coder(cls, **overrides: Any) -> Self:
        """Programming expert."""
        return cls.preset("coder", **overrides)

    @classmethod
    def preset(cls, name: str, /, **overrides: Any) -> Self:
        """A shipped agent by its name; raises NotFoundError, or ConfigError for an override."""
        return validated(cls, {**preset_values(name), **overrides})


def default_agents() -> tuple[AgentConfig, ...]:
    """All shipped agents, in the order of PRESETS."""
    return tuple(AgentConfig.preset(name) for name in PRESETS)
