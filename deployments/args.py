"""The ``args`` of serve_config.yaml: what the application is built from, validated at once."""

from typing import Any, Self

from pydantic import Field, model_validator

from cluster.config import GroupConfig, GroupsConfig
from latentmas_core.agents.config import AgentConfig
from latentmas_core.agents.config import default_agents
from latentmas_core.config import EngineConfig
from latentmas_core.pipelines.builtin import builtin_pipelines
from latentmas_core.pipelines.spec import PipelineSpec


class AppArgs(GroupsConfig):
    """Groups, the engine options they share, and agents and pipelines beyond the shipped ones.

    An agent or pipeline of a shipped name replaces it. Every agent of every pipeline has to be
    hosted by a group; shipped pipelines whose agents are not hosted are not offered.
    """

    engine: EngineConfig = EngineConfig()
    latent_steps: int = Field(default=15, ge=0)
    agents: tuple[AgentConfig, ...] = ()
    pipelines: tuple[PipelineSpec, ...] = ()
    max_ongoing_requests: int = Field(default=256, ge=1)

    @model_validator(mode="after")
    def _knows_what_it_hosts(self) -> Self:
        known = self.known_agents
        for group in self.groups:
            self.engine_of(group)
            for agent in group.agents:
                if agent not in known:
                    raise ValueError(
                        f"group {group.name!r} hosts unknown agent {agent!r}; known are "
                        f"{', '.join(sorted(known))}. Declare it under agents"
                    )
        for spec in self.pipelines:
            for node in spec.nodes:
                if node.agent not in self.group_of:
                    raise ValueError(
                        f"pipeline {spec.name!r} needs agent {node.agent!r}, which no group hosts. "
                        "Add it to the agents of a group"
                    )
        if self.latent_steps > self.engine.max_latent_steps:
            raise ValueError(
                f"latent_steps is {self.latent_steps}; engine.max_latent_steps is "
                f"{self.engine.max_latent_steps}. Raise engine.max_latent_steps"
            )
        return self

    @property
    def known_agents(self) -> dict[str, AgentConfig]:
        return {agent.name: agent for agent in (*default_agents(), *self.agents)}

    @property
    def offered_pipelines(self) -> dict[str, PipelineSpec]:
        """The pipelines whose agents are all hosted."""
        hosted = [agent for agent in self.known_agents if agent in self.group_of]
        shipped = {
            name: spec
            for name, spec in builtin_pipelines(hosted).items()
            if all(node.agent in self.group_of for node in spec.nodes)
        }
        return shipped | {spec.name: spec for spec in self.pipelines}

    def agents_of(self, group: GroupConfig) -> dict[str, AgentConfig]:
        return {name: self.known_agents[name] for name in group.agents}

    def engine_of(self, group: GroupConfig) -> EngineConfig:
        """The common engine options with the group's own on top."""
        own: dict[str, Any] = {"num_threads": group.num_threads} | group.engine
        return EngineConfig.model_validate(self.engine.model_dump() | own)
