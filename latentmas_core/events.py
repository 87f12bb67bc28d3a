"""What happens while a question is reasoned about, in the order it happens. Plain data only."""

from dataclasses import dataclass
from typing import Any

from latentmas_core.logprobs import AnswerToken
from latentmas_core.phases import Phase
from latentmas_core.result import AgentTrace, LensStep, Result, StageTrace, ToolCallTrace
from latentmas_core.routing.domains import RoutingDecision


@dataclass(frozen=True)
class Routed:
    """The question chose its pipeline (``pipeline="auto"``); nothing has started yet."""

    decision: RoutingDecision


@dataclass(frozen=True)
class StageStarted:
    """What a stage reads is there; it goes to its group. ``attempt`` counts from 1."""

    stage: str
    group: str
    agents: tuple[str, ...]
    attempt: int


@dataclass(frozen=True)
class StageFinished:
    """A stage is done; its trace says where, when, and how many bytes of memory it moved."""

    stage: str
    trace: StageTrace


@dataclass(frozen=True)
class AgentStarted:
    """An agent's turn was handed to an engine, where it may have to wait."""

    agent: str
    stage: str


@dataclass(frozen=True)
class AgentPhase:
    """What an agent's turn is at from now on."""

    agent: str
    phase: Phase


@dataclass(frozen=True)
class AgentThought:
    """An agent finished its latent steps or, with the lens, so many; ``lens`` is the last."""

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
class ToolStarted:
    """A tool runs now that the answer of this round called; rounds count from 1."""

    call_id: str
    round: int
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class ToolFinished:
    """A call of a tool ended, well or not; one that was refused has not started before."""

    trace: ToolCallTrace


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
    Routed
    | StageStarted
    | StageFinished
    | AgentStarted
    | AgentPhase
    | AgentThought
    | AgentFinished
    | StageRetried
    | StageGivenUp
    | ToolStarted
    | ToolFinished
    | AnswerDelta
    | AnswerDone
)
