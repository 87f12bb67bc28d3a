"""The questions that are asked, and the prompts that agents get for them.

Every side builds its prompts here; the engine's side finds its own answers by these prompts, so it
fails if the system asked its engine anything else.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from latentmas_core.agents.config import AgentConfig, default_agents
from latentmas_core.agents.instructions import Situation
from latentmas_core.agents.prompts import build_messages, encode_prompt

AGENTS = {agent.name: agent for agent in default_agents()}
HIERARCHY: tuple[AgentConfig, ...] = tuple(
    AGENTS[name] for name in ("planner", "critic", "refiner", "judger")
)
SPEAKER = HIERARCHY[-1]


def latent_prompts(tokenizer: PreTrainedTokenizerBase, question: str) -> list[list[int]]:
    """One prompt per agent of the hierarchical pipeline in mode latent."""
    situations = [Situation.FIRST, Situation.LATENT, Situation.LATENT, Situation.ANSWER]
    return [
        _encode(tokenizer, agent, question, situation)
        for agent, situation in zip(HIERARCHY, situations, strict=True)
    ]


def text_prompt(
    tokenizer: PreTrainedTokenizerBase, question: str, *, agent_index: int, texts: Sequence[str]
) -> list[int]:
    """The prompt of one agent in mode text, behind what those before it wrote."""
    said = [(agent.name, text) for agent, text in zip(HIERARCHY, texts, strict=False)]
    situation = Situation.TEXT if agent_index else Situation.FIRST
    return _encode(tokenizer, HIERARCHY[agent_index], question, situation, said)


def single_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """The prompt of the speaker in mode single."""
    return _encode(tokenizer, SPEAKER, question, Situation.SINGLE)


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    agent: AgentConfig,
    question: str,
    situation: Situation,
    said: Sequence[tuple[str, str]] = (),
) -> list[int]:
    messages = build_messages(agent, question, situation=situation, transcript=said)
    return list(encode_prompt(tokenizer, messages))
