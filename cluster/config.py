"""Strict models of what a cluster is made of: groups of agents and their share of a machine.

Knows names of agents, not what they are; an unknown key is an error that names it.
"""

from collections.abc import Iterator
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.problem import Problem, ProblemsError

INGRESS = "Ingress"  # the deployment that takes the requests


class StrictModel(BaseModel):
    """Immutable and finite, and an unknown field is an error that names it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class ScalingConfig(StrictModel):
    """How the number of a group's replicas follows its load.

    A replica is loaded when its requests hold ``target_kv_usage`` of its KV blocks, or when
    ``target_ongoing_requests`` run and wait on it; there are as many replicas as keep both at their
    targets.
    """

    min_replicas: int = Field(default=1, ge=0)
    """The fewest. 0 gives the group back to the cluster while nobody asks: the first request then
    waits for a start."""
    max_replicas: int = Field(ge=1)
    """The most; set it to what the cluster has room for."""
    target_ongoing_requests: float = Field(default=16.0, gt=0)
    """Requests that run and wait on a replica when it is loaded. Lower it to answer sooner, raise
    it to use replicas better."""
    target_kv_usage: float = Field(default=0.7, gt=0, le=1)
    """Share of a replica's KV blocks in use when it is loaded. Lower it where long prompts make
    turns give way."""
    upscale_delay_s: float = Field(default=5.0, ge=0)
    """Seconds that the load is above the targets before replicas are added."""
    downscale_delay_s: float = Field(default=60.0, ge=0)
    """Seconds that the load is below the targets before replicas are taken away; longer than a
    start takes, or they come and go."""
    interval_s: float = Field(default=1.0, gt=0)
    """Seconds between two looks at the load."""

    @model_validator(mode="after")
    def _min_is_not_over_max(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas is {self.min_replicas} and max_replicas {self.max_replicas}; "
                "raise max_replicas or lower min_replicas"
            )
        return self


class GroupConfig(StrictModel):
    """One Serve deployment: replicas that each hold an engine and host the same agents."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_-]+$")
    """The name of the deployment; letters, digits, _ and -."""
    agents: tuple[str, ...] = Field(min_length=1)
    """Who is hosted here. Agents next to each other in a pipeline hand on without a copy within one
    group."""
    num_replicas: int | None = Field(default=None, ge=1)
    """How many, always; null: 1, or as `scaling` says."""
    scaling: ScalingConfig | None = None
    """Let the number of replicas follow the load instead."""
    num_cpus: float = Field(default=1.0, gt=0)
    """Cores of a replica, and, rounded down, threads of its engine. Two engines that share cores
    slow each other down by far more than half."""
    num_gpus: float = Field(default=0.0, ge=0)
    """A share of one card, or a whole number of cards over which the model is spread."""
    gpu_memory_share: float | None = Field(default=None, gt=0, le=1)
    """Share of each card's memory that a replica may take; null: as much as its share of the
    card."""
    resident_adapters: tuple[str, ...] = ()
    """Names from `adapters.load` that stay on the device here, so that none of their requests waits
    for a load."""
    max_ongoing_requests: int = Field(default=256, ge=1)
    """Stages that one replica works on at a time; the engine batches them."""
    max_queued_requests: int = Field(default=1024, ge=1)
    """Stages that wait for a replica, in each ingress; more are refused with 503."""
    drain_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds that a replica which is to end may go on answering what it has. Longer than the
    longest answer; a pod's `terminationGracePeriodSeconds` has to be longer still."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Fields of the common `engine` that are others for this group."""

    @model_validator(mode="after")
    def _is_not_the_ingress(self) -> Self:
        if self.name == INGRESS:
            raise ValueError(
                f"group {self.name!r} has the name of the deployment that takes the requests; "
                "Serve would rename one of the two. Rename the group"
            )
        return self

    @model_validator(mode="after")
    def _has_one_number_of_replicas(self) -> Self:
        if self.num_replicas is not None and self.scaling is not None:
            raise ValueError(
                f"group {self.name!r} has num_replicas and scaling; one of them says how many "
                "replicas there are. Take the other out"
            )
        return self

    @model_validator(mode="after")
    def _takes_a_share_of_one_card_or_whole_cards(self) -> Self:
        if self.num_gpus > 1 and not self.num_gpus.is_integer():
            raise ValueError(
                f"group {self.name!r} has num_gpus {self.num_gpus}; a replica takes a share of one "
                "GPU (at most 1) or a whole number of GPUs. Round it"
            )
        if self.gpu_memory_share is not None and self.num_gpus == 0:
            raise ValueError(
                f"group {self.name!r} has gpu_memory_share {self.gpu_memory_share} without a GPU. "
                "Set num_gpus, or take it out"
            )
        return self

    @property
    def num_threads(self) -> int:
        return max(1, int(self.num_cpus))

    @property
    def min_replicas(self) -> int:
        return self.scaling.min_replicas if self.scaling else self.num_replicas or 1

    @property
    def max_replicas(self) -> int:
        return self.scaling.max_replicas if self.scaling else self.num_replicas or 1

    @property
    def device_memory_share(self) -> float | None:
        """The share of a card's memory that a replica may take; None if it has no part of one."""
        if self.num_gpus == 0:
            return None
        return self.gpu_memory_share or min(1.0, self.num_gpus)


class GroupsConfig(StrictModel):
    """All groups of an application; every agent lives in exactly one."""

    groups: tuple[GroupConfig, ...] = Field(min_length=1)
    """Every agent lives in exactly one."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        problems = list(self.problems())
        if problems:
            raise ProblemsError(problems)
        return self

    def problems(self) -> Iterator[Problem]:
        """All that does not go together, though each part is valid by itself."""
        yield from self._groups_declared_twice()
        yield from self._agents_hosted_twice()

    def _groups_declared_twice(self) -> Iterator[Problem]:
        seen: set[str] = set()
        for i, group in enumerate(self.groups):
            if group.name in seen:
                yield Problem(
                    f"groups[{i}].name",
                    f"group {group.name!r} is declared twice; names of groups are unique. Rename "
                    "one",
                )
            seen.add(group.name)

    def _agents_hosted_twice(self) -> Iterator[Problem]:
        host_of: dict[str, str] = {}
        for i, group in enumerate(self.groups):
            for j, agent in enumerate(group.agents):
                if agent in host_of:
                    yield Problem(
                        f"groups[{i}].agents[{j}]",
                        f"agent {agent!r} is hosted by groups {host_of[agent]!r} and "
                        f"{group.name!r}; an agent lives in one group. Raise num_replicas instead",
                    )
                host_of.setdefault(agent, group.name)

    @property
    def group_of(self) -> dict[str, str]:
        """Maps each agent to the name of the group that hosts it."""
        return {agent: group.name for group in self.groups for agent in group.agents}
