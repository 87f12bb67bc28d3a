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
    """A token near a thought. ``text`` is what it alone reads as, so a part of a character reads
    as U+FFFD."""

    id: int
    text: str
    probability: float


class LensStep(FrozenModel):
    """What one latent step was close to.

    ``index`` counts from 0. ``norm`` is that of the hidden state after the final norm; what is fed
    back is that, realigned and rescaled to the mean norm of the embedding rows. ``tokens``: what
    the agent would have said at that point, likeliest first. Where the model's numbers overflow,
    ``norm`` is None or ``tokens`` is empty.
    """

    index: int
    norm: float | None
    tokens: tuple[LensToken, ...]


class PhaseDurations(FrozenModel):
    """How long a turn was at what, by the clock of its engine."""

    queued_ms: float = 0.0
    prefill_ms: float = 0.0
    thinking_ms: float = 0.0
    speaking_ms: float = 0.0

    @classmethod
    def of(cls, seconds: PhaseTimes) -> "PhaseDurations":
        return cls(**{f"{phase}_ms": 1000.0 * spent for phase, spent in seconds.items()})


class AgentTrace(FrozenModel):
    """What one agent really did. ``text`` is empty for an agent that only thought.

    ``adapter`` is the name of the adapter that its rows were computed with, or "base";
    ``adapter_digest`` the SHA-256 of its files. ``started_at``: seconds since 1970, by the clock of
    the machine that ran it; it was busy from then on for ``latency_ms``, of which ``phases`` are
    what its engine spent. ``lens`` has one entry per latent step where the request asks for that.
    ``logprobs``: the tokens of the answer, of the speaker whose request asks for them.
    """

    name: str
    role: str
    adapter: str
    adapter_digest: str | None = None
    mode: Mode
    latent_steps: int
    prompt_tokens: int
    completion_tokens: int
    started_at: float
    latency_ms: float
    text: str = ""
    logprobs: tuple[AnswerToken, ...] | None = None
    phases: PhaseDurations = PhaseDurations()
    lens: tuple[LensStep, ...] = ()


class Usage(FrozenModel):
    """Sums over all agents of a run."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    latent_steps: int = 0

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
    """How the agents of one call fared.

    ``replica`` ran it last, where there are several. Times are since the run began, by the clock of
    whoever called. ``bytes_in`` of memory were fetched, ``bytes_out`` put where others can fetch
    them. ``failures`` says what ended each attempt but a good last one.
    """

    name: str
    group: str
    status: StageStatus
    replica: str | None
    started_ms: float
    finished_ms: float
    bytes_in: int
    bytes_out: int
    attempts: int
    failures: tuple[str, ...] = ()


class Transfer(FrozenModel):
    """What hand-offs cost: stages executed, hops between groups, and bytes of memory that stages
    put where others can fetch them."""

    model_config = ConfigDict(populate_by_name=True)

    stages: int = 0
    hops: int = 0
    num_bytes: int = Field(default=0, serialization_alias="bytes", validation_alias="bytes")


class ToolCallTrace(FrozenModel):
    """A call of a tool that the model asked for, and what it was told.

    ``round`` counts from 1: the answer that asked. ``text`` is the result or, with ``is_error``,
    why there is none: the tool failed, or was not run at all.
    """

    call_id: str
    round: int
    name: str
    arguments: JsonObject
    text: str
    is_error: bool = False
    latency_ms: float = 0.0


class Result(FrozenModel):
    """A final answer and how it came about.

    ``failed_agents`` were to take part and did not; the answer was given without them.
    ``citations`` are the passages of documents that were shown with the question, [1] first, then
    those that a tool found. Where tools were called (``tool_calls``), the agents have run once per
    round: ``agents``, ``stages``, ``usage`` and ``transfer`` are those of all rounds, in their
    order. ``routing``: how ``pipeline`` was chosen, where the request left that open ("auto").
    ``conversation_id``: where this is kept as a turn.
    """

    id: str
    final_answer: str
    pipeline: str
    mode: Mode
    agents: tuple[AgentTrace, ...]
    usage: Usage
    latency_ms: float
    transfer: Transfer = Transfer()
    stages: tuple[StageTrace, ...] = ()
    failed_agents: tuple[str, ...] = ()
    finish_reason: str = "stop"
    citations: tuple[Citation, ...] = ()
    tool_calls: tuple[ToolCallTrace, ...] = ()
    routing: RoutingDecision | None = None
    conversation_id: str | None = None
