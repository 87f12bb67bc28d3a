"""The ways to answer that are compared, and the limits that hold for all of them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import Field

from latentmas_core.config import FrozenModel
from latentmas_core.errors import ConfigError
from latentmas_core.request import DEFAULT_PIPELINE

# What each method says to LatentMASSystem.run beside the limits.
METHODS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "single": {"mode": "single"},
        "text": {"mode": "text"},
        "latent": {"mode": "latent", "handoff": "kv"},
        "latent-embeddings": {"mode": "latent", "handoff": "embeddings"},
    }
)


class Limits(FrozenModel):
    """The same for every method. ``max_tokens`` is what each speaking agent may write."""

    pipeline: str = DEFAULT_PIPELINE
    max_tokens: int = Field(default=256, ge=1)
    latent_steps: int = Field(default=10, ge=0)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    seed: int = Field(default=0, ge=0)


def request_options(method: str, limits: Limits) -> dict[str, Any]:
    """Everything that a run is told beside the question; ConfigError for an unknown method."""
    if method not in METHODS:
        raise ConfigError(
            f"method {method!r} does not exist. Known: {', '.join(METHODS)}.", param="methods"
        )
    return {**METHODS[method], **limits.model_dump()}
