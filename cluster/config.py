"""Strict models of what a cluster is made of: groups of agents and their share of a machine.

Knows names of agents, not what they are; an unknown key is an error that names it.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class StrictModel(BaseModel):
    """Immutable, and an unknown field is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GroupConfig(StrictModel):
    """One Serve deployment: replicas that each hold an engine and host the same agents.

    ``num_cpus`` is also the number of threads of a replica's engine: two engines that share cores
    slow each other down by far more than half. ``engine`` overrides fields of the common engine
    options for this group.
    """

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_-]+$")
    agents: tuple[str, ...] = Field(min_length=1)
    num_replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=1.0, gt=0)
    num_gpus: float = Field(default=0.0, ge=0)
    max_ongoing_requests: int = Field(default=256, ge=1)
    max_queued_requests: int = Field(default=1024, ge=1)
    engine: dict[str, Any] = Field(default_factory=dict)

    @property
    def num_threads(self) -> int:
        return max(1, int(self.num_cpus))


class GroupsConfig(StrictModel):
    """All groups of an application; every agent lives in exactly one."""

    groups: tuple[GroupConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _hosts_each_agent_once(self) -> "GroupsConfig":
        group_of: dict[str, str] = {}
        names = [group.name for group in self.groups]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"group {name!r} is declared twice; names of groups are unique")
        for group in self.groups:
            for agent in group.agents:
                if agent in group_of:
                    raise ValueError(
                        f"agent {agent!r} is hosted by groups {group_of[agent]!r} and "
                        f"{group.name!r}; an agent lives in one group. Raise num_replicas instead"
                    )
                group_of[agent] = group.name
        return self

    @property
    def group_of(self) -> dict[str, str]:
        """Maps each agent to the name of the group that hosts it."""
        return {agent: group.name for group in self.groups for agent in group.agents}
