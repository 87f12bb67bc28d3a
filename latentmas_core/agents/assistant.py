"""The assistant: a shipped agent without a role, for plain chat. It adds no word of its own."""

from latentmas_core.agents.config import AgentConfig
from latentmas_core.agents.instructions import Instructions

ASSISTANT = "assistant"


def assistant_agent() -> AgentConfig:
    """Messages go to the model as they are. Not one of the default agents: it has no role among
    them."""
    return AgentConfig(
        name=ASSISTANT,
        role="plain chat",
        system_prompt="",
        instructions=Instructions(
            first="{question}", latent="{question}", text="{transcript}\n\n{question}"
        ),
        temperature=0.7,
    )
