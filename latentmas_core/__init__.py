"""Multi-agent reasoning in latent space: the public names. Torch is imported when first needed."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from latentmas_core.config import EngineConfig, LoRAConfig, SamplingParams
from latentmas_core.errors import (
    AdapterError,
    ConfigError,
    ContextLengthError,
    EngineError,
    HubError,
    LatentMASError,
    ModelError,
    NotFoundError,
    PipelineError,
    SegmentError,
)

if TYPE_CHECKING:
    from latentmas_core.agents.config import AgentConfig, default_agents
    from latentmas_core.latent.merge_rule import MergeRule
    from latentmas_core.lora.library import AdapterInfo
    from latentmas_core.lora.merge_options import MergeMethod, MergeOptions
    from latentmas_core.pipelines.spec import NodeSpec, PipelineSpec
    from latentmas_core.pipelines.yaml_file import load_pipelines
    from latentmas_core.request import Carry, Handoff, Mode, ReasonRequest, Trace
    from latentmas_core.result import AgentTrace, LensStep, LensToken, Result, Transfer, Usage
    from latentmas_core.routing.domains import Domain, RoutingDecision
    from latentmas_core.system import LatentMASSystem

__all__ = [
    "AdapterError",
    "AdapterInfo",
    "AgentConfig",
    "AgentTrace",
    "Carry",
    "ConfigError",
    "ContextLengthError",
    "Domain",
    "EngineConfig",
    "EngineError",
    "Handoff",
    "HubError",
    "LatentMASError",
    "LatentMASSystem",
    "LensStep",
    "LensToken",
    "LoRAConfig",
    "MergeMethod",
    "MergeOptions",
    "MergeRule",
    "Mode",
    "ModelError",
    "NodeSpec",
    "NotFoundError",
    "PipelineError",
    "PipelineSpec",
    "ReasonRequest",
    "Result",
    "RoutingDecision",
    "SamplingParams",
    "SegmentError",
    "Trace",
    "Transfer",
    "Usage",
    "default_agents",
    "load_pipelines",
]

_HOME_OF = {
    "AdapterInfo": "lora.library",
    "AgentConfig": "agents.config",
    "AgentTrace": "result",
    "Carry": "request",
    "Domain": "routing.domains",
    "Handoff": "request",
    "LatentMASSystem": "system",
    "LensStep": "result",
    "LensToken": "result",
    "MergeMethod": "lora.merge_options",
    "MergeOptions": "lora.merge_options",
    "MergeRule": "latent.merge_rule",
    "Mode": "request",
    "NodeSpec": "pipelines.spec",
    "PipelineSpec": "pipelines.spec",
    "ReasonRequest": "request",
    "Result": "result",
    "RoutingDecision": "routing.domains",
    "Trace": "request",
    "Transfer": "result",
    "Usage": "result",
    "default_agents": "agents.config",
    "load_pipelines": "pipelines.yaml_file",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
