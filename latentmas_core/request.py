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
    """A question with everything that may be chosen per request; None means: as the agent or the
    pipeline says.

    ``adapters`` maps agents to the adapter that each uses in this request, "base" or None for none.
    ``max_wait_s``: an agent that waits so long for its turn, or certainly will, is refused.
    ``timeout_s``: the answer must be there by then; ``stage_timeout_s``: each stage's work, from
    when its inputs are there. ``on_expert_failure``: whether the others go on without one of them.

    ``history`` is what was said before the question, ``tool_messages`` what came of it since: calls
    and what the tools answered. Every agent that is shown the question is shown them around it, and
    ``preamble`` right before its first word; "auto" chooses a pipeline by the question alone.
    ``tools`` are those that the answer may call; only the speaker is told of them. ``logprobs``:
    each token of the answer with its log-probability, and so many of the likeliest beside it.
    """

    question: Question
    preamble: Text | None = None
    history: tuple[ChatMessage, ...] = ()
    tool_messages: tuple[ChatMessage, ...] = ()
    tools: tuple[ToolSpec, ...] = ()
    pipeline: str = DEFAULT_PIPELINE
    mode: Mode = Mode.LATENT
    latent_steps: NumSteps | None = None
    handoff: Handoff = Handoff.KV
    carry: Carry = Carry.ALL
    merge: MergeRule | None = None
    max_tokens: NumTokens | None = None
    temperature: JsonNumber | None = Field(default=None, ge=0.0, le=2.0)
    top_p: JsonNumber | None = Field(default=None, gt=0.0, le=1.0)
    top_k: TopK | None = None
    seed: Seed | None = None
    stop: tuple[Text, ...] = ()
    ignore_eos: JsonBool = False
    logprobs: NumLogprobs | None = None
    system_prompt: Text | None = None
    adapters: dict[Text, AdapterChoice | None] = Field(default_factory=dict)
    max_wait_s: JsonNumber | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    timeout_s: JsonNumber | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    stage_timeout_s: JsonNumber | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    on_expert_failure: OnExpertFailure | None = None
    trace: Trace = Trace.OFF

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
