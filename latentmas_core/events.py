"""What happens while a question is reasoned about, in the order it happens. Plain data only."""

from dataclasses import dataclass

from latentmas_core.logprobs import AnswerToken
from latentmas_core.result import AgentTrace, LensStep, Result


@dataclass(frozen=True)
class AgentStarted:
    """An agent's turn was handed to an engine."""

    agent: str
    stage: str


@dataclass(frozen=True)
class AgentThought:
    """An agent finished its latent steps or, with the lens, so many of them; ``lens`` is the last."""

    agent: str
    latent_steps: int
    lens: LensStep | None = None


@dataclass(frozen=True)
class AgentFinished:
    """An agent's turn ended; its trace says what it did."""

    agent: str
    trace: AgentTrace


@dataclass(frozen=True)
class StageRetried:
    """What ran a stage was lost, or what it read; its agents start anew."""

    stage: str
    attempt: int
    reason: str


@dataclass(frozen=True)
class StageGivenUp:
    """A stage failed for good, and the run goes on without its agents."""

    stage: str
    agents: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class AnswerDelta:
    """A piece of the speaker's answer; pieces never split a character. ``logprobs``: its tokens,
    where the request asks for them."""

    text: str
    logprobs: tuple[AnswerToken, ...] = ()


@dataclass(frozen=True)
class AnswerDone:
    """The run ended well; nothing follows."""

    result: Result


Event = (
    AgentStarted
    | AgentThought
    | AgentFinished
    | StageRetried
    | StageGivenUp
    | AnswerDelta
    | AnswerDone
)
