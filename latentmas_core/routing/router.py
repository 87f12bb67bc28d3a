"""Chooses a pipeline for a question: by its domain, and only among the agents and pipelines that
are there. Knows no groups, engines or requests."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from latentmas_core.errors import NotFoundError
from latentmas_core.pipelines.builtin import SPEAKS_LAST
from latentmas_core.pipelines.spec import PipelineSpec
from latentmas_core.request import DEFAULT_PIPELINE, Mode, ReasonRequest
from latentmas_core.routing.classifier import Classification, classify
from latentmas_core.routing.domains import AUTO, Domain, RoutingDecision
from latentmas_core.routing.lexicon import shipped_lexicon

# Reasoning beside another domain is planning; alone it is what the default pipeline is for.
EXPERT_OF: Mapping[Domain, str] = {
    Domain.MEDICAL: "medical",
    Domain.MATH: "math",
    Domain.CODE: "coder",
    Domain.REASONING: "planner",
}
_ORDER = tuple(EXPERT_OF.values())  # the same experts are always the same pipeline
_DEFAULTS = ((Domain.GENERAL,), (Domain.REASONING,))
_NONE_CLEAR = "no domain is clear"


class Route(NamedTuple):
    """What is to run: a pipeline, which may be one that nobody declared, and the request for it.
    ``decision`` says why, unless the request named its pipeline itself."""

    spec: PipelineSpec
    request: ReasonRequest
    decision: RoutingDecision | None = None


class Router:
    """Chooses among ``pipelines`` and makes pipelines of ``agents``; both may change meanwhile."""

    def __init__(self, pipelines: Mapping[str, PipelineSpec], agents: Collection[str]) -> None:
        self._pipelines = pipelines
        self._agents = agents
        shipped_lexicon()  # it is read once, and not while a question waits

    def route(self, request: ReasonRequest) -> Route:
        """NotFoundError if there is nothing to choose among, or for an adapter of an agent that is
        not there; adapters of agents that are not chosen have nothing to do.

        One clear domain: its expert, then the judger. Several: their experts at the same time, then
        the judger. None, or reasoning alone: the default pipeline. In mode ``single``, where one
        agent answers, that is the expert of the clearest domain.
        """
        self._check_adapters(request)
        found = classify(request.question)
        wanted = [] if found.domains in _DEFAULTS else [EXPERT_OF[d] for d in found.domains]
        experts = [agent for agent in wanted if agent in self._agents]
        missing = [agent for agent in wanted if agent not in self._agents]
        if request.mode is Mode.SINGLE:
            experts = experts[:1]
        spec = (
            self._of_experts(sorted(experts, key=_ORDER.index), request.mode)
            if experts
            else self._default()
        )
        adapters = {a: choice for a, choice in request.adapters.items() if a in spec.agents}
        return Route(
            spec,
            request.model_copy(update={"pipeline": spec.name, "adapters": adapters}),
            _decision(found, spec, missing, request.mode),
        )

    def _check_adapters(self, request: ReasonRequest) -> None:
        for agent in request.adapters:
            if agent not in self._agents:
                raise NotFoundError(
                    f"adapters names agent {agent!r}, which does not exist here; there are "
                    f"{', '.join(self._agents) or 'none'}.",
                    param="adapters",
                )

    def _of_experts(self, experts: Sequence[str], mode: Mode) -> PipelineSpec:
        name = ".".join((AUTO, *experts))
        if mode is Mode.SINGLE or SPEAKS_LAST not in self._agents:
            return PipelineSpec.chain(name, experts)
        made = PipelineSpec.parallel(name, experts, SPEAKS_LAST)
        alike = (spec for spec in self._pipelines.values() if _shape(spec) == _shape(made))
        return next(alike, made)

    def _default(self) -> PipelineSpec:
        runnable = {
            name: spec
            for name, spec in self._pipelines.items()
            if all(agent in self._agents for agent in spec.agents)
        }
        if not runnable:
            raise NotFoundError(
                f"pipeline {AUTO!r} has no pipeline to choose: the agents of none are there. "
                "Add agents.",
                param="pipeline",
            )
        return runnable.get(DEFAULT_PIPELINE) or next(iter(runnable.values()))


def _shape(spec: PipelineSpec) -> frozenset[tuple[str, frozenset[str]]]:
    """Which agent reads which; the same for pipelines that differ in names alone."""
    agent_of = {node.name: node.agent for node in spec.nodes}
    return frozenset(
        (node.agent, frozenset(agent_of[parent] for parent in node.after)) for node in spec.nodes
    )


def _decision(
    found: Classification, spec: PipelineSpec, missing: Sequence[str], mode: Mode
) -> RoutingDecision:
    speaker = spec.speaker.agent
    before = tuple(agent for agent in spec.agents if agent != speaker and mode is not Mode.SINGLE)
    domain, *others = found.domains
    return RoutingDecision(
        domain=domain,
        other_domains=tuple(others),
        confidence=round(found.confidence, 3),
        evidence=found.evidence,
        pipeline=spec.name,
        experts=before or (speaker,),
        reason=_reason(found, spec, missing),
    )


def _reason(found: Classification, spec: PipelineSpec, missing: Sequence[str]) -> str:
    names = " and ".join(found.domains)
    if found.domains == (Domain.GENERAL,):
        why = f"{_NONE_CLEAR}, so the question is taken as general"
    else:
        why = f"{', '.join(found.evidence)} speak for {names}"
    lacking = f"; {', '.join(missing)} would fit, but is not there" if missing else ""
    return f"{why}{lacking}; pipeline {spec.name} answers."
