"""PipelineSpec: a DAG of agents with one speaker at its end, valid from the moment it exists.

Knows no groups, engines or agents' configs; names are checked against known agents on demand.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, Self

from pydantic import Field, model_validator

from latentmas_core.config import FrozenModel
from latentmas_core.errors import ConfigError, NotFoundError, PipelineError
from latentmas_core.latent.merge_rule import MergeRule
from latentmas_core.names import Name
from latentmas_core.request import OnExpertFailure
from latentmas_core.validation import validated


class NodeSpec(FrozenModel):
    """One turn of an agent, taken after the turns it reads.

    Plain data may leave ``agent`` out: it is then called like the node.
    """

    name: Name
    """Of the turn; once in a pipeline."""
    agent: Name
    """Who takes it; left out, the agent of the same name."""
    after: tuple[Name, ...] = ()
    """The turns that it reads; with several they work side by side."""

    @model_validator(mode="before")
    @classmethod
    def _agent_is_called_like_the_node(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "name" in values:
            return {"agent": values["name"], **values}
        return values


class PipelineSpec(FrozenModel):
    """A DAG of nodes; the only node that nobody reads is the speaker.

    A request may choose ``merge``, ``on_expert_failure`` and ``stage_timeout_s`` otherwise.
    Raises PipelineError for a cycle, no node, a name used twice, an unknown parent, and for several
    nodes that nobody reads: they would be several speakers, or lead to none.
    """

    name: Name
    """What `pipeline` of a request says."""
    nodes: tuple[NodeSpec, ...]
    """Turns of agents; the only one that nobody reads speaks."""
    merge: MergeRule = MergeRule.REUSED
    """Where memories of turns side by side stand for the one that reads them: at the same positions
    (`reused`), or one behind the other (`consecutive`)."""
    on_expert_failure: OnExpertFailure = OnExpertFailure.FAIL
    """Whether a run goes on without one of several that failed (`continue`), or fails with it
    (`fail`)."""
    stage_timeout_s: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """Seconds that a stage may work; null: as long as the request may."""
    description: str = ""
    """For `GET /v1/pipelines`."""

    @model_validator(mode="after")
    def _is_a_dag_with_one_speaker(self) -> Self:
        self._check_names()
        self._check_parents()
        self._check_cycles()
        self._check_speaker()
        return self

    @classmethod
    def chain(cls, name: str, agents: Sequence[str], *, description: str = "") -> Self:
        """Each agent reads the one before it; an agent may take several turns."""
        names = _turn_names(agents)
        nodes = [
            {"name": turn, "agent": agent, "after": names[max(i - 1, 0) : i]}
            for i, (turn, agent) in enumerate(zip(names, agents, strict=True))
        ]
        return cls.from_dict({"name": name, "nodes": nodes, "description": description})

    @classmethod
    def parallel(
        cls,
        name: str,
        experts: Sequence[str],
        judger: str,
        *,
        merge: MergeRule = MergeRule.REUSED,
        description: str = "",
    ) -> Self:
        """All experts at the same time, then the judger, who reads them merged."""
        *expert_names, judger_name = _turn_names([*experts, judger])
        nodes: list[dict[str, Any]] = [
            {"name": turn, "agent": agent}
            for turn, agent in zip(expert_names, experts, strict=True)
        ]
        nodes.append({"name": judger_name, "agent": judger, "after": expert_names})
        return cls.from_dict(
            {"name": name, "nodes": nodes, "merge": merge, "description": description}
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a pipeline from plain data; whatever is wrong with it is a PipelineError."""
        try:
            return validated(cls, values)
        except PipelineError:
            raise
        except ConfigError as error:
            raise PipelineError(
                f"pipeline {values.get('name', '?')!r}: {error.message}", param=error.param
            ) from None

    @property
    def nodes_in_order(self) -> tuple[NodeSpec, ...]:
        """Parents before children; among equals as declared."""
        by_name = {node.name: node for node in self.nodes}
        order = TopologicalSorter({node.name: node.after for node in self.nodes}).static_order()
        return tuple(by_name[name] for name in order)

    @property
    def speaker(self) -> NodeSpec:
        return self._unread_nodes()[0]

    @property
    def agents(self) -> tuple[str, ...]:
        """Each agent that takes part, once."""
        return tuple(dict.fromkeys(node.agent for node in self.nodes))

    def check_agents(self, known: Collection[str]) -> None:
        """Raise NotFoundError for the first agent that is not ``known``."""
        for agent in self.agents:
            if agent not in known:
                raise NotFoundError(
                    f"pipeline {self.name!r} needs agent {agent!r}, which does not exist here. "
                    f"Known agents: {', '.join(known) or 'none'}. Add it or name another one.",
                    param="agent",
                )

    def _check_names(self) -> None:
        if not self.nodes:
            raise self._error("has no node; at least one agent must speak")
        for name, count in Counter(node.name for node in self.nodes).items():
            if count > 1:
                raise self._error(f"has {count} nodes called {name!r}; give each its own name")

    def _check_parents(self) -> None:
        names = [node.name for node in self.nodes]
        for node in self.nodes:
            for parent, count in Counter(node.after).items():
                if parent not in names:
                    raise self._error(
                        f"has node {node.name!r} after {parent!r}, which is no node of it. "
                        f"Its nodes: {', '.join(names)}"
                    )
                if count > 1:
                    raise self._error(f"has node {node.name!r} {count} times after {parent!r}")

    def _check_cycles(self) -> None:
        try:
            TopologicalSorter({node.name: node.after for node in self.nodes}).prepare()
        except CycleError as error:
            path = " -> ".join(error.args[1])
            raise self._error(f"has a cycle: {path}. Take one of these edges away") from None

    def _check_speaker(self) -> None:
        unread = [node.name for node in self._unread_nodes()]
        if len(unread) > 1:
            raise self._error(
                f"has {len(unread)} nodes that nobody reads ({', '.join(unread)}), but exactly one "
                "speaks. Let every other node lead to the speaker, through its 'after'"
            )

    def _unread_nodes(self) -> list[NodeSpec]:
        read = {parent for node in self.nodes for parent in node.after}
        return [node for node in self.nodes if node.name not in read]

    def _error(self, problem: str) -> PipelineError:
        return PipelineError(f"pipeline {self.name!r} {problem}.", param="pipeline")


def _turn_names(agents: Sequence[str]) -> list[str]:
    """planner, critic, planner -> planner, critic, planner-2."""
    num_turns: Counter[str] = Counter()
    names = []
    for agent in agents:
        num_turns[agent] += 1
        names.append(agent if num_turns[agent] == 1 else f"{agent}-{num_turns[agent]}")
    return names
