"""The plan of a valid config file in lines that a person reads."""

from collections.abc import Iterator, Sequence

from cluster.placement import Node, Seat
from deployments.check import Report
from deployments.layout import ApplicationLayout, GroupLayout, PipelineLayout, StageLayout


def plan_lines(config: str, cluster: Sequence[Node], report: Report) -> Iterator[str]:
    """Groups with their replicas and agents, then pipelines with their stages."""
    yield f"{config} is valid. Placed on {_cluster(cluster)}:"
    for application in report.applications:
        yield ""
        yield f"application {application.name} at {application.route_prefix or 'no route'}"
        for group in application.groups:
            yield from _group_lines(group)
        for pipeline in application.pipelines:
            yield from _pipeline_lines(pipeline)
        yield from _not_offered_lines(application)


def _cluster(nodes: Sequence[Node]) -> str:
    kinds: dict[tuple[float, int], list[str]] = {}
    for node in nodes:
        kinds.setdefault((node.num_cpus, node.num_gpus), []).append(node.name)
    return "; ".join(
        f"{names[0] if len(names) == 1 else f'{names[0]} to {names[-1]}'} with {_take(cpus, gpus)}"
        for (cpus, gpus), names in kinds.items()
    )


def _group_lines(group: GroupLayout) -> Iterator[str]:
    num_replicas = _count(group.min_replicas, "replica")
    if group.max_replicas > group.min_replicas:
        num_replicas = f"{group.min_replicas} to {_count(group.max_replicas, 'replica')}"
    memory = ""
    if group.gpu_memory_share is not None and group.gpu_memory_share < 1:
        memory = f", at most {group.gpu_memory_share:g} of the memory of a GPU"
    yield f"  group {group.name}: {num_replicas} of {_take(group.num_cpus, group.num_gpus)}{memory}"
    yield f"    agents {', '.join(group.agents)}"
    for seat in group.seats:
        yield f"    replica {seat.replica + 1} on {_place(seat)}"
    if not group.seats:
        yield "    no replica until its first request"


def _place(seat: Seat) -> str:
    cards = ", ".join(f"GPU {card}" for card in seat.cards)
    if not cards:
        return seat.node
    share = f" ({seat.share:g} of it)" if seat.share < 1 else ""
    return f"{seat.node}, {cards}{share}"


def _pipeline_lines(pipeline: PipelineLayout) -> Iterator[str]:
    num_stages, num_hops = _count(len(pipeline.stages), "stage"), _count(pipeline.num_hops, "hop")
    yield f"  pipeline {pipeline.name}: {num_stages}, {num_hops}"
    for stage in pipeline.stages:
        yield f"    {_stage(stage)}"


def _stage(stage: StageLayout) -> str:
    parts = [f"{stage.name} in {stage.group}"]
    if stage.after:
        parts.append(f"after {', '.join(stage.after)}")
    if stage.beside:
        parts.append(f"at the same time as {', '.join(stage.beside)}")
    if stage.is_speaking:
        parts.append("answers")
    return "; ".join(parts)


def _not_offered_lines(application: ApplicationLayout) -> Iterator[str]:
    for name, agents in application.not_offered.items():
        yield f"  pipeline {name} is not offered: needs {', '.join(agents)}"


def _take(num_cpus: float, num_gpus: float) -> str:
    cpus = _count(num_cpus, "CPU")
    return f"{cpus} and {_count(num_gpus, 'GPU')}" if num_gpus else cpus


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}" if number == 1 else f"{number:g} {noun}s"
