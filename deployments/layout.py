"""What an application will look like: where replicas and agents sit, and how pipelines run.

Plain data, ready to be printed or dumped. Starts nothing and loads nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.config import GroupConfig
from cluster.placement import Seat
from deployments.args import AppArgs
from latentmas_core.pipelines.builtin import builtin_pipelines
from latentmas_core.pipelines.plan import Plan, Stage, plan
from latentmas_core.pipelines.spec import PipelineSpec


@dataclass(frozen=True)
class GroupLayout:
    """``seats``: of the replicas that it starts with."""

    name: str
    agents: tuple[str, ...]
    min_replicas: int
    max_replicas: int
    num_cpus: float
    num_gpus: float
    gpu_memory_share: float | None
    seats: tuple[Seat, ...]


@dataclass(frozen=True)
class StageLayout:
    """``beside``: stages that may run at the same time, since neither waits for the other."""

    name: str
    group: str
    agents: tuple[str, ...]
    after: tuple[str, ...]
    beside: tuple[str, ...]
    is_speaking: bool


@dataclass(frozen=True)
class PipelineLayout:
    """``num_hops``: hand-overs of memory between different groups."""

    name: str
    description: str
    num_hops: int
    stages: tuple[StageLayout, ...]


@dataclass(frozen=True)
class ApplicationLayout:
    """``not_offered`` maps shipped pipelines to the agents that they lack."""

    name: str
    route_prefix: str | None
    groups: tuple[GroupLayout, ...]
    pipelines: tuple[PipelineLayout, ...]
    not_offered: Mapping[str, tuple[str, ...]]


def lay_out_group(
    group: GroupConfig,
    agents: Iterable[str],
    bounds: tuple[int, int],
    seats: tuple[Seat, ...],
) -> GroupLayout:
    """``bounds``: the least and the most replicas, once Serve's overrides are in."""
    return GroupLayout(
        name=group.name,
        agents=tuple(agents),
        min_replicas=bounds[0],
        max_replicas=bounds[1],
        num_cpus=group.num_cpus,
        num_gpus=group.num_gpus,
        gpu_memory_share=group.device_memory_share,
        seats=seats,
    )


def lay_out_pipelines(args: AppArgs) -> tuple[PipelineLayout, ...]:
    """Every pipeline that is offered, as it will be run."""
    offered = args.offered_pipelines.values()
    return tuple(_pipeline(spec, plan(spec, args.group_of)) for spec in offered)


def not_offered(args: AppArgs) -> dict[str, tuple[str, ...]]:
    """Shipped pipelines that nobody replaced, and which of their agents no group hosts."""
    offered = args.offered_pipelines
    return {
        name: tuple(agent for agent in spec.agents if agent not in args.group_of)
        for name, spec in builtin_pipelines().items()
        if name not in offered
    }


def _pipeline(spec: PipelineSpec, planned: Plan) -> PipelineLayout:
    return PipelineLayout(
        name=spec.name,
        description=spec.description,
        num_hops=planned.num_hops,
        stages=tuple(_stage(stage, planned) for stage in planned.stages),
    )


def _stage(stage: Stage, planned: Plan) -> StageLayout:
    return StageLayout(
        name=stage.name,
        group=stage.group,
        agents=tuple(node.agent for node in stage.nodes),
        after=stage.parents,
        beside=tuple(other.name for other in planned.stages if _is_beside(stage, other, planned)),
        is_speaking=stage.is_speaking,
    )


def _is_beside(stage: Stage, other: Stage, planned: Plan) -> bool:
    return (
        stage is not other
        and other not in planned.ancestors_of(stage)
        and stage not in planned.ancestors_of(other)
    )
