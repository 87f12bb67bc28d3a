"""One question and how it is to be reasoned about: the same fields in process and over HTTP."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from latentmas_core.chat import ChatMessage, Conversation, ToolSpec, check_order
from latentmas_core.config import (
    AdapterChoice,
    FrozenModel,
    JsonBool,
    JsonNumber,
    NumLogprobs,
    NumSteps,
    NumTokens,
    Seed,
    Text,
    TopK,
)
from latentmas_core.latent.merge_rule import MergeRule

DEFAULT_PIPELINE = "hierarchical"


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "Text should have at least 1 character that is no blank")
    return text


Question = Annotated[
    str,
    StringConstraints(min_length=1),
    AfterValidator(_not_blank),
    Field(json_schema_extra={"pattern": r"\S"}),
]


class Mode(StrEnum):
    """What agents exchange: latent memory, text, or nothing (one agent answers alone)."""

    LATENT = "latent"
    TEXT = "text"
    SINGLE = "single"


class Handoff(StrEnum):
    """How a latent thought reaches the next agent.

    KV: the keys and values themselves. EMBEDDINGS: tokens and latent vectors, prefilled again by
    the receiver. TEXT: the agent thinks, then writes down what it hands over.
    """

    KV = "kv"
    EMBEDDINGS = "embeddings"
    TEXT = "text"


class Carry(StrEnum):
    """Which rows of a thought are handed over: prompt and latents, or the latents alone."""

    ALL = "all"
    LATENTS = "latents"


class OnExpertFailure(StrEnum):
    """What becomes of a run when an agent fails that others run beside.

    FAIL: the run fails with it. CONTINUE: whoever reads them all goes on with those that came, and
    the result says who is missing.
    """

    FAIL = "fail"
    CONTINUE = "continue"


class Trace(StrEnum):
    """What a run tells beyond who did what.

    LENS: of each latent step its norm and the tokens nearest to it (``AgentTrace.lens``).
    """

    OFF = "off"
    LENS = "lens"


class ReasonRequest(FrozenModel):
    """A question with everything that may be chosen per request."""

    question: Question
    """What is asked."""
    preamble: Text | None = None
    """Text right before the question's first word, for every agent that is shown the question."""
    history: tuple[ChatMessage, ...] = ()
    """What was said before the question; every agent that is shown the question sees it."""
    tool_messages: tuple[ChatMessage, ...] = ()
    """What came since the question: calls of `tools` and their answers, from an assistant's message
    to a tool's."""
    tools: tuple[ToolSpec, ...] = ()
    """Functions that the answer may call. Only the agent that answers is told of them; a call ends
    the run and is handed back."""
    pipeline: str = DEFAULT_PIPELINE
    """Which agents work, and in which order: a name of `GET /v1/pipelines`, or `auto`: the question
    chooses."""
    mode: Mode = Mode.LATENT
    """What agents exchange: memory (`latent`) or text (`text`); with `single` one agent answers
    alone."""
    latent_steps: NumSteps | None = None
    """How many latent steps each agent that thinks takes; null: as each agent says."""
    handoff: Handoff = Handoff.KV
    """How a thought reaches the next agent: as keys and values (`kv`), as tokens and vectors that
    the reader computes again (`embeddings`), or written down (`text`)."""
    carry: Carry = Carry.ALL
    """What of a thought is handed over: prompt and latent steps (`all`), or the latent steps alone
    (`latents`)."""
    merge: MergeRule | None = None
    """How memories of agents side by side are joined: at the same positions (`reused`) or one
    behind the other (`consecutive`); null: as the pipeline says."""
    max_tokens: NumTokens | None = None
    """The most that each agent writes; null: as each agent says."""
    temperature: JsonNumber | None = Field(default=None, ge=0.0, le=2.0)
    """0 takes the likeliest token each time; null: as each agent says."""
    top_p: JsonNumber | None = Field(default=None, gt=0.0, le=1.0)
    """Draw from the likeliest tokens that together have this share of the probability; null: as
    each agent says."""
    top_k: TopK | None = None
    """Draw from so many of the likeliest tokens; null: from all."""
    seed: Seed | None = None
    """The same seed draws the same random numbers; null: others each time."""
    stop: tuple[Text, ...] = ()
    """The answer ends in front of the first of these texts."""
    ignore_eos: JsonBool = False
    """Write `max_tokens` tokens even where the model would end; for measurements."""
    logprobs: NumLogprobs | None = None
    """Tell each token of the answer with its log-probability, and so many of the likeliest beside
    it; null: none."""
    system_prompt: Text | None = None
    """Told to every agent, in front of its own."""
    adapters: dict[Text, AdapterChoice | None] = Field(default_factory=dict)
    """Which adapter each agent uses: a name, several with weights, or `base` for none; agents that
    are left out keep their own."""
    max_wait_s: JsonNumber | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """An agent that waits so long for its turn, or certainly will, is refused with 503."""
    timeout_s: JsonNumber | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """The answer is there by then, or 504; at most `request_timeout_s` of the service, which holds
    for null."""
    stage_timeout_s: JsonNumber | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """The most that one stage may work, from when its inputs are there; null: as the pipeline
    says."""
    on_expert_failure: OnExpertFailure | None = None
    """Whether the run goes on without an expert that failed (`continue`) or fails with it (`fail`);
    null: as the pipeline says."""
    trace: Trace = Trace.OFF
    """`lens`: tell of each latent step its norm and the tokens nearest to it."""

    @model_validator(mode="after")
    def _messages_are_in_order(self) -> Self:
        check_order(self.history, self.tool_messages)
        return self

    @property
    def shown_question(self) -> str:
        """What agents read where their instructions leave the question open."""
        return f"{self.preamble or ''}{self.question}"

    @property
    def conversation(self) -> Conversation:
        return Conversation(self.history, self.tool_messages)
