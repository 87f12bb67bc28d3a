"""The ``args`` of serve_config.yaml: what the application is built from, validated at once."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from cluster.config import GroupConfig, GroupsConfig
from latentmas_core.agents.config import AgentConfig, default_agents
from latentmas_core.config import EngineConfig, FrozenModel
from latentmas_core.errors import ConfigError
from latentmas_core.lora.library import AdapterSource
from latentmas_core.names import Name
from latentmas_core.pipelines.builtin import builtin_pipelines
from latentmas_core.pipelines.spec import PipelineSpec
from latentmas_core.validation import validated


class AdaptersConfig(FrozenModel):
    """Which adapters a service has, and who may change that while it runs.

    ``load``: names of the registry, or a name with a path. With ``admin`` adapters may be loaded
    and unloaded over HTTP, from folders under ``roots`` and, with ``allow_hub``, from the hub.
    """

    load: tuple[AdapterSource | Name, ...] = ()
    registries: tuple[Path, ...] = ()
    admin: bool = False
    roots: tuple[Path, ...] = ()
    allow_hub: bool = False


class AppArgs(GroupsConfig):
    """Groups, the engine options they share, and agents and pipelines beyond the shipped ones.

    An agent or pipeline of a shipped name replaces it. Every agent of every pipeline has to be
    hosted by a group; shipped pipelines whose agents are not hosted are not offered.
    """

    engine: EngineConfig = EngineConfig()
    latent_steps: int = Field(default=15, ge=0)
    agents: tuple[AgentConfig, ...] = ()
    pipelines: tuple[PipelineSpec, ...] = ()
    adapters: AdaptersConfig = AdaptersConfig()
    max_ongoing_requests: int = Field(default=256, ge=1)
    request_timeout_s: float = Field(default=540.0, gt=0)
    max_stage_attempts: int = Field(default=4, ge=1)
    max_transfer_bytes: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _hosts_only_agents_it_knows(self) -> Self:
        known = self.known_agents
        for group in self.groups:
            for agent in group.agents:
                if agent not in known:
                    raise ValueError(
                        f"group {group.name!r} hosts unknown agent {agent!r}; known are "
                        f"{', '.join(sorted(known))}. Declare it under agents"
                    )
        return self

    @model_validator(mode="after")
    def _hosts_the_agents_of_its_pipelines(self) -> Self:
        for spec in self.pipelines:
            for node in spec.nodes:
                if node.agent not in self.group_of:
                    raise ValueError(
                        f"pipeline {spec.name!r} needs agent {node.agent!r}, which no group hosts. "
                        "Add it to the agents of a group"
                    )
        return self

    @model_validator(mode="after")
    def _thinks_within_the_limits_of_its_engines(self) -> Self:
        for group in self.groups:
            limit = self.engine_of(group).max_latent_steps
            for agent in self.agents_of(group).values():
                steps = self.latent_steps if agent.latent_steps is None else agent.latent_steps
                if steps > limit:
                    raise ValueError(
                        f"latent_steps is {steps} for agent {agent.name!r}; max_latent_steps of "
                        f"the engine of group {group.name!r} is {limit}. Lower it or raise that"
                    )
        return self

    @model_validator(mode="after")
    def _declares_each_name_once(self) -> Self:
        for kind, declared in (("agent", self.agents), ("pipeline", self.pipelines)):
            names = [one.name for one in declared]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{kind} {name!r} is declared twice; names are unique")
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
        threads = {"num_threads": group.num_threads}
        common = self.engine.model_dump(exclude_unset=True)
        try:
            return validated(EngineConfig, threads | common | group.engine)
        except ConfigError as error:
            raise ValueError(f"engine of group {group.name!r}: {error.message}") from None
