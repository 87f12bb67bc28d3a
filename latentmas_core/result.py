"""What a run returns, in process and over HTTP alike."""

from enum import StrEnum

from pydantic import ConfigDict, Field

from latentmas_core.chat import JsonObject
from latentmas_core.config import FrozenModel
from latentmas_core.context.documents.document import Citation
from latentmas_core.logprobs import AnswerToken
from latentmas_core.phases import PhaseTimes
from latentmas_core.request import Mode
from latentmas_core.routing.domains import RoutingDecision


class LensToken(FrozenModel):
    """A token near a thought."""

    id: int
    """Its number in the vocabulary of the model."""
    text: str
    """As it reads alone: a part of a character reads as U+FFFD."""
    probability: float
    """From 0 to 1."""


class LensStep(FrozenModel):
    """What one latent step was close to.

    What is fed back is the hidden state after the final norm, realigned and rescaled to the mean
    norm of the embedding rows. Where the model's numbers overflow, ``norm`` is None or ``tokens``
    is empty.
    """

    index: int
    """Which latent step, from 0."""
    norm: float | None
    """The norm of the hidden state after the final norm."""
    tokens: tuple[LensToken, ...]
    """What the agent would have said there, likeliest first."""


class PhaseDurations(FrozenModel):
    """How long a turn was at what, by the clock of its engine."""

    queued_ms: float = 0.0
    """It waited for its first row."""
    prefill_ms: float = 0.0
    """It read what it was given."""
    thinking_ms: float = 0.0
    """It took latent steps."""
    speaking_ms: float = 0.0
    """It wrote."""

    @classmethod
    def of(cls, seconds: PhaseTimes) -> "PhaseDurations":
        return cls(**{f"{phase}_ms": 1000.0 * spent for phase, spent in seconds.items()})


class AgentTrace(FrozenModel):
    """What one agent really did."""

    name: str
    """The agent's name."""
    role: str
    """What it is good at."""
    adapter: str
    """Whose weights its rows were computed with: a name, or `base`."""
    adapter_digest: str | None = None
    """SHA-256 of the adapter's files."""
    mode: Mode
    """What it exchanged with the others."""
    latent_steps: int
    """Latent steps that it took."""
    prompt_tokens: int
    """Tokens that it read."""
    completion_tokens: int
    """Tokens that it wrote."""
    started_at: float
    """Seconds since 1970, by the clock of its machine."""
    latency_ms: float
    """From its start on it was busy for so long."""
    text: str = ""
    """What it wrote; empty if it only thought."""
    logprobs: tuple[AnswerToken, ...] | None = None
    """The tokens of the answer, of the speaker whose request asks for them."""
    phases: PhaseDurations = PhaseDurations()
    """What its engine spent of that."""
    lens: tuple[LensStep, ...] = ()
    """One entry per latent step, with `trace: lens`."""


class Usage(FrozenModel):
    """Sums over all agents of a run."""

    prompt_tokens: int = 0
    """Tokens that all agents read."""
    completion_tokens: int = 0
    """Tokens that all agents wrote."""
    latent_steps: int = 0
    """Latent steps that all agents took."""

    @classmethod
    def of(cls, agents: tuple[AgentTrace, ...]) -> "Usage":
        return cls(
            prompt_tokens=sum(agent.prompt_tokens for agent in agents),
            completion_tokens=sum(agent.completion_tokens for agent in agents),
            latent_steps=sum(agent.latent_steps for agent in agents),
        )


class StageStatus(StrEnum):
    """Whether the agents of a stage take part in the answer."""

    DONE = "done"
    FAILED = "failed"


class StageTrace(FrozenModel):
    """How the agents of one call fared. Times are by the clock of whoever called."""

    name: str
    """Its agents, joined by +."""
    group: str
    """The group that ran it."""
    status: StageStatus
    """Whether its agents take part in the answer."""
    replica: str | None
    """The replica that ran it last, where there are several."""
    started_ms: float
    """Since the run began."""
    finished_ms: float
    """Since the run began."""
    bytes_in: int
    """Bytes of memory that it fetched."""
    bytes_out: int
    """Bytes of memory that it put where others fetch it."""
    attempts: int
    """How often it was begun."""
    failures: tuple[str, ...] = ()
    """What ended each attempt but a good last one."""


class Transfer(FrozenModel):
    """What hand-offs cost."""

    model_config = ConfigDict(populate_by_name=True)

    stages: int = 0
    """Stages that were executed."""
    hops: int = 0
    """Hand-overs between groups."""
    num_bytes: int = Field(default=0, serialization_alias="bytes", validation_alias="bytes")
    """Memory that stages put where others fetch it."""


class ToolCallTrace(FrozenModel):
    """A call of a tool that the model asked for, and what it was told."""

    call_id: str
    """The call's own id."""
    round: int
    """Which answer asked for it, from 1."""
    name: str
    """The tool's name."""
    arguments: JsonObject
    """What it was called with."""
    text: str
    """Its result, or why there is none: it failed, or was not run at all."""
    is_error: bool = False
    """Whether `text` says why there is none."""
    latency_ms: float = 0.0
    """How long the tool took."""


class Result(FrozenModel):
    """A final answer and how it came about.

    Where tools were called, the agents have run once per round: ``agents``, ``stages``, ``usage``
    and ``transfer`` are those of all rounds, in their order.
    """

    id: str
    """The run's own id; logs and traces have it too."""
    final_answer: str
    """What the last agent wrote."""
    pipeline: str
    """The pipeline that ran."""
    mode: Mode
    """The mode in which it ran."""
    agents: tuple[AgentTrace, ...]
    """What each turn did, in the order of the pipeline."""
    usage: Usage
    """Sums over all agents."""
    latency_ms: float
    """From the request to the answer."""
    transfer: Transfer = Transfer()
    """What hand-overs cost."""
    stages: tuple[StageTrace, ...] = ()
    """Calls of groups, each for one agent or neighbours."""
    failed_agents: tuple[str, ...] = ()
    """Agents that were to take part and did not; the answer was given without them."""
    finish_reason: str = "stop"
    """`stop`, or `length`: `max_tokens` were written."""
    citations: tuple[Citation, ...] = ()
    """Passages that were shown with the question, [1] first, then those that a tool found."""
    tool_calls: tuple[ToolCallTrace, ...] = ()
    """What the service ran for the answer."""
    routing: RoutingDecision | None = None
    """How the pipeline was chosen, with `pipeline: auto`."""
    conversation_id: str | None = None
    """Where this is kept as a turn."""
