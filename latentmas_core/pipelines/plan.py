"""Which nodes run where, in one call each: neighbours of one group are fused into a stage.

Pure: knows groups by name only, and neither engines nor runners.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from latentmas_core.errors import NotFoundError
from latentmas_core.latent.merge_rule import MergeRule
from latentmas_core.pipelines.spec import NodeSpec, PipelineSpec
from latentmas_core.request import Mode, OnExpertFailure


@dataclass(frozen=True)
class Stage:
    """Nodes that one group executes in one call, in order; only the first reads other stages.

    ``parents`` are names of stages, in the order in which their memories are merged by ``merge``.
    """

    name: str
    group: str
    nodes: tuple[NodeSpec, ...]
    parents: tuple[str, ...] = ()
    is_speaking: bool = False
    merge: MergeRule = MergeRule.REUSED

    @property
    def speaker(self) -> NodeSpec | None:
        return self.nodes[-1] if self.is_speaking else None


@dataclass(frozen=True)
class Plan:
    """The stages of a pipeline, parents first; the last one speaks."""

    pipeline: str
    stages: tuple[Stage, ...]
    on_expert_failure: OnExpertFailure = OnExpertFailure.FAIL
    stage_timeout_s: float | None = None

    @property
    def num_hops(self) -> int:
        """Hand-overs between different groups."""
        group_of = {stage.name: stage.group for stage in self.stages}
        return sum(
            group_of[parent] != stage.group for stage in self.stages for parent in stage.parents
        )

    def ancestors_of(self, stage: Stage) -> tuple[Stage, ...]:
        """All stages that lead to ``stage``, in the order of the plan."""
        wanted = set(stage.parents)
        found = []
        for candidate in reversed(self.stages):
            if candidate.name in wanted:
                found.append(candidate)
                wanted.update(candidate.parents)
        return tuple(reversed(found))

    def in_mode(self, mode: Mode) -> "Plan":
        """What runs of it: in mode ``single`` nobody but the speaker, who then reads nothing."""
        return self._speaker_only() if mode is Mode.SINGLE else self

    def _speaker_only(self) -> "Plan":
        last = self.stages[-1]
        speaker = last.nodes[-1].model_copy(update={"after": ()})
        alone = replace(last, name=speaker.name, nodes=(speaker,), parents=())
        return replace(self, stages=(alone,))


def plan(spec: PipelineSpec, group_of: Mapping[str, str]) -> Plan:
    """Lay ``spec`` out over groups; ``group_of`` maps an agent to the group that hosts it.

    A node joins its parent's stage when it is the parent's only child, the parent is its only
    parent, and both live in one group.
    """
    runs: list[list[NodeSpec]] = []
    run_of: dict[str, list[NodeSpec]] = {}
    for node in spec.nodes_in_order:
        if _is_fused(node, spec, group_of):
            run = run_of[node.after[0]]
        else:
            run = []
            runs.append(run)
        run.append(node)
        run_of[node.name] = run
    return Plan(
        spec.name,
        tuple(_stage(run, run_of, spec, group_of) for run in runs),
        spec.on_expert_failure,
        spec.stage_timeout_s,
    )


def _is_fused(node: NodeSpec, spec: PipelineSpec, group_of: Mapping[str, str]) -> bool:
    if len(node.after) != 1:
        return False
    parent = next(other for other in spec.nodes if other.name == node.after[0])
    num_children = sum(parent.name in other.after for other in spec.nodes)
    return num_children == 1 and _group(parent, group_of) == _group(node, group_of)


def _stage(
    run: list[NodeSpec],
    run_of: Mapping[str, list[NodeSpec]],
    spec: PipelineSpec,
    group_of: Mapping[str, str],
) -> Stage:
    return Stage(
        name=_stage_name(run),
        group=_group(run[0], group_of),
        nodes=tuple(run),
        parents=tuple(_stage_name(run_of[parent]) for parent in run[0].after),
        is_speaking=run[-1] == spec.speaker,
        merge=spec.merge,
    )


def _stage_name(run: list[NodeSpec]) -> str:
    return "+".join(node.name for node in run)


def _group(node: NodeSpec, group_of: Mapping[str, str]) -> str:
    if node.agent not in group_of:
        raise NotFoundError(
            f"no group hosts agent {node.agent!r}. Hosted: {', '.join(group_of) or 'none'}.",
            param="agent",
        )
    return group_of[node.agent]
