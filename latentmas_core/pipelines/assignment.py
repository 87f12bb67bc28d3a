"""What one agent does in one request: pure decisions, taken before any engine is asked."""

import hashlib
from dataclasses import dataclass
from typing import TypeVar

from latentmas_core.agents.config import AgentConfig
from latentmas_core.agents.instructions import Situation
from latentmas_core.config import SamplingParams
from latentmas_core.pipelines.spec import NodeSpec
from latentmas_core.request import Handoff, Mode, ReasonRequest

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Assignment:
    """Think ``num_latent_steps``; with ``sampling`` also write; ``keeps_memory`` hands it over."""

    situation: Situation
    num_latent_steps: int
    sampling: SamplingParams | None
    keeps_memory: bool


def assign_thinker(
    agent: AgentConfig, node: NodeSpec, request: ReasonRequest, *, default_latent_steps: int
) -> Assignment:
    """For an agent before the speaker: it hands over latent memory, or what it writes."""
    keeps_memory = exchanges_memory(request)
    default = _first_given(agent.latent_steps, default_latent_steps)
    return Assignment(
        situation=_situation(node, request, Situation.FIRST, Situation.LATENT),
        num_latent_steps=_steps_in_mode(request, _first_given(request.latent_steps, default)),
        sampling=None if keeps_memory else _sampling(agent, node, request),
        keeps_memory=keeps_memory,
    )


def assign_speaker(agent: AgentConfig, node: NodeSpec, request: ReasonRequest) -> Assignment:
    """For the speaker: it takes latent steps only if its own config says so.

    The request's latent steps are for those who think, its stop strings for the answer.
    """
    sampling = _sampling(agent, node, request)
    return Assignment(
        situation=_situation(node, request, Situation.SINGLE, Situation.ANSWER),
        num_latent_steps=_steps_in_mode(request, _first_given(agent.latent_steps, 0)),
        sampling=sampling.model_copy(update={"stop": request.stop, "logprobs": request.logprobs}),
        keeps_memory=False,
    )


def exchanges_memory(request: ReasonRequest) -> bool:
    """Whether agents hand over latent memory, not words."""
    return request.mode is Mode.LATENT and request.handoff is not Handoff.TEXT


def derive_seed(seed: int, node: str) -> int:
    """A seed of its own for each node, the same in every run and every process."""
    digest = hashlib.sha256(f"{seed}/{node}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _situation(
    node: NodeSpec, request: ReasonRequest, alone: Situation, behind_memory: Situation
) -> Situation:
    if not node.after:
        return alone
    return behind_memory if exchanges_memory(request) else Situation.TEXT


def _steps_in_mode(request: ReasonRequest, num_steps: int) -> int:
    return num_steps if request.mode is Mode.LATENT else 0


def _sampling(agent: AgentConfig, node: NodeSpec, request: ReasonRequest) -> SamplingParams:
    return SamplingParams(
        max_tokens=_first_given(request.max_tokens, agent.max_tokens),
        temperature=_first_given(request.temperature, agent.temperature),
        top_p=_first_given(request.top_p, agent.top_p),
        top_k=request.top_k,
        seed=None if request.seed is None else derive_seed(request.seed, node.name),
        ignore_eos=request.ignore_eos,
    )


def _first_given(chosen: Number | None, default: Number) -> Number:
    return default if chosen is None else chosen
