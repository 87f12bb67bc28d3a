"""Which adapters an agent uses in a request, by name, and what that means on an engine."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from latentmas_core.agents.config import AgentConfig
from latentmas_core.config import AdapterChoice
from latentmas_core.errors import NotFoundError
from latentmas_core.latent.segment import BASE_ADAPTER
from latentmas_core.lora.mix import NO_ADAPTERS, AdapterMix, AdapterUse
from latentmas_core.pipelines.plan import Stage
from latentmas_core.pipelines.spec import PipelineSpec
from latentmas_core.request import ReasonRequest


class ChosenAdapters(NamedTuple):
    """``label`` is what a trace says: "base", a name, or "name*weight+name*weight"."""

    label: str
    mix: AdapterMix


BASE = ChosenAdapters(BASE_ADAPTER, NO_ADAPTERS)


def choice_of(agent: AgentConfig, request: ReasonRequest) -> AdapterChoice | None:
    """What the request says for the agent, else what the agent says itself."""
    if agent.name in request.adapters:
        return request.adapters[agent.name]
    return agent.adapter


def names_in(choice: AdapterChoice | None) -> tuple[str, ...]:
    """The adapters that a choice names; none for the base model."""
    if choice is None or choice == BASE_ADAPTER:
        return ()
    return (choice,) if isinstance(choice, str) else tuple(choice)


def resolve(choice: AdapterChoice | None, digest_of: Callable[[str], str]) -> ChosenAdapters:
    """Raises what ``digest_of`` raises for a name that is not there; ConfigError for an adapter
    that is used twice."""
    names = names_in(choice)
    if not names:
        return BASE
    weights = choice if isinstance(choice, Mapping) else {names[0]: 1.0}
    uses = tuple(AdapterUse(digest_of(name), weights[name]) for name in names)
    label = "+".join(
        name if weights[name] == 1.0 else f"{name}*{weights[name]:g}" for name in names
    )
    return ChosenAdapters(label, AdapterMix(uses))


def check_choices(spec: PipelineSpec, request: ReasonRequest) -> None:
    """Raise NotFoundError if the request chooses for an agent that is not of the pipeline."""
    for agent in request.adapters:
        if agent not in spec.agents:
            raise NotFoundError(
                f"adapters names agent {agent!r}, which takes no part in pipeline {spec.name!r}; "
                f"its agents are {', '.join(spec.agents)}.",
                param="adapters",
            )


def adapters_of(
    stage: Stage, agents: Mapping[str, AgentConfig], request: ReasonRequest
) -> dict[str, tuple[str, ...]]:
    """The names that each agent of a stage uses."""
    return {node.agent: names_in(choice_of(agents[node.agent], request)) for node in stage.nodes}
