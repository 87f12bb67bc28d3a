"""What can be asked for: the pipelines that are offered, and the agents that take part in them."""

from collections.abc import Mapping
from typing import Protocol

from fastapi import FastAPI

from latentmas_core.agents.config import AgentConfig
from latentmas_core.config import FrozenModel
from latentmas_core.latent.merge_rule import MergeRule
from latentmas_core.latent.segment import BASE_ADAPTER
from latentmas_core.pipelines.plan import Plan
from latentmas_core.pipelines.spec import PipelineSpec
from latentmas_core.pipelines.stage_worker import Roster
from latentmas_core.request import DEFAULT_PIPELINE, OnExpertFailure


class NodeEntry(FrozenModel):
    """A turn of an agent."""

    name: str
    """The turn's name."""
    agent: str
    """Who takes it."""
    after: tuple[str, ...]
    """The turns that it reads."""


class StageEntry(FrozenModel):
    """Turns that one group takes in one call."""

    name: str
    """Its turns, joined by +."""
    group: str
    """The group that runs it."""
    nodes: tuple[str, ...]
    """Its turns."""
    parents: tuple[str, ...]
    """The stages that it reads."""


class PipelineEntry(FrozenModel):
    """A pipeline that is offered."""

    name: str
    """What `pipeline` of a request says."""
    description: str
    """In a few words."""
    default: bool
    """Whether it runs where a request names none."""
    nodes: tuple[NodeEntry, ...]
    """The turns, each behind those that it reads."""
    speaker: str
    """The turn that answers."""
    stages: tuple[StageEntry, ...]
    """Which group runs which turns in one call."""
    hops: int
    """Hand-overs between groups."""
    merge: MergeRule
    """How memories are joined, where a request does not say."""
    on_expert_failure: OnExpertFailure
    """What becomes of a run without an expert, where a request does not say."""
    stage_timeout_s: float | None
    """The most that one stage may work, where a request does not say; null: no limit."""


class Pipelines(FrozenModel):
    """``GET /v1/pipelines``."""

    data: tuple[PipelineEntry, ...]
    """All that are offered."""


class AgentEntry(FrozenModel):
    """Who an agent is; a request may say otherwise about all but its role. Its prompts are the
    operator's, and not told."""

    name: str
    """What `adapters` of a request calls it."""
    role: str
    """What it is good at."""
    group: str
    """The group that hosts it."""
    adapter: str | dict[str, float]
    """A name, several with weights, or `base`."""
    temperature: float
    """Its own, where a request does not say."""
    top_p: float
    """Its own, where a request does not say."""
    max_tokens: int
    """Its own, where a request does not say."""
    latent_steps: int
    """What it takes in front of the speaker, where a request does not say."""
    speaker_latent_steps: int
    """What it takes as the speaker, where a request does not say."""
    pipelines: tuple[str, ...]
    """The offered ones that it takes part in."""


class Agents(FrozenModel):
    """``GET /v1/agents``."""

    data: tuple[AgentEntry, ...]
    """All that are hosted."""


class Catalogue(Protocol):
    """What the routes need of the application."""

    @property
    def pipelines(self) -> Mapping[str, PipelineSpec]: ...
    @property
    def plans(self) -> Mapping[str, Plan]: ...
    async def rosters(self) -> Mapping[str, Roster]: ...


def add_catalogue_routes(app: FastAPI, catalogue: Catalogue) -> None:
    """``GET /v1/pipelines`` and ``/v1/agents``."""

    @app.get("/v1/pipelines", response_model=Pipelines)
    async def pipelines() -> Pipelines:
        """The pipelines that are offered: their agents and edges, and which group runs what."""
        specs = catalogue.pipelines
        return Pipelines(
            data=tuple(_pipeline_entry(specs[name], catalogue.plans[name]) for name in specs)
        )

    @app.get("/v1/agents", response_model=Agents)
    async def agents() -> Agents:
        """The agents that are hosted, as their groups have them now."""
        rosters = await catalogue.rosters()
        specs = catalogue.pipelines
        return Agents(
            data=tuple(
                _agent_entry(agent, group, roster, specs)
                for group, roster in rosters.items()
                for agent in roster.agents.values()
            )
        )


def _pipeline_entry(spec: PipelineSpec, plan: Plan) -> PipelineEntry:
    return PipelineEntry(
        name=spec.name,
        description=spec.description,
        default=spec.name == DEFAULT_PIPELINE,
        nodes=tuple(
            NodeEntry(name=node.name, agent=node.agent, after=node.after)
            for node in spec.nodes_in_order
        ),
        speaker=spec.speaker.name,
        stages=tuple(
            StageEntry(
                name=stage.name,
                group=stage.group,
                nodes=tuple(node.name for node in stage.nodes),
                parents=stage.parents,
            )
            for stage in plan.stages
        ),
        hops=plan.num_hops,
        merge=spec.merge,
        on_expert_failure=spec.on_expert_failure,
        stage_timeout_s=spec.stage_timeout_s,
    )


def _agent_entry(
    agent: AgentConfig, group: str, roster: Roster, specs: Mapping[str, PipelineSpec]
) -> AgentEntry:
    own_steps = agent.latent_steps
    return AgentEntry(
        name=agent.name,
        role=agent.role,
        group=group,
        adapter=BASE_ADAPTER if agent.adapter is None else agent.adapter,
        temperature=agent.temperature,
        top_p=agent.top_p,
        max_tokens=agent.max_tokens,
        latent_steps=roster.default_latent_steps if own_steps is None else own_steps,
        speaker_latent_steps=own_steps or 0,
        pipelines=tuple(name for name, spec in specs.items() if agent.name in spec.agents),
    )
