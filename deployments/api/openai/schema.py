"""The bodies of the chat calls: OpenAI's fields, as far as they can be kept, and our own.

A field that is not here is refused by name; one that is here with a single value is known, and no
other value of it can be kept.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, create_model

from latentmas_core.chat import AnyText, JsonObject, ToolName
from latentmas_core.config import (
    FrozenModel,
    JsonBool,
    JsonNumber,
    NumLogprobs,
    NumTokens,
    Seed,
    Text,
)
from latentmas_core.logprobs import AnswerToken
from latentmas_core.request import ReasonRequest
from latentmas_core.result import AgentTrace, Transfer
from latentmas_core.routing.domains import RoutingDecision

MAX_STOPS = 4

# What the fields of OpenAI say; everything else a request can choose stands under "latentmas".
OPENAI_FIELDS = {
    "question",
    "history",
    "tool_messages",
    "tools",
    "pipeline",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "logprobs",
    "system_prompt",
}

if TYPE_CHECKING:
    LatentOptions = FrozenModel
else:
    LatentOptions = create_model(
        "LatentOptions",
        __base__=FrozenModel,
        __doc__="The fields of `POST /v1/reason` that OpenAI's API has no field for.",
        **{
            name: (field.annotation, field)
            for name, field in ReasonRequest.model_fields.items()
            if name not in OPENAI_FIELDS
        },
    )


class TextPart(FrozenModel):
    """A part of a message; parts are joined as they are."""

    type: Literal["text"]
    """There are no other parts: no images."""
    text: AnyText
    """What it says; parts are joined as they are."""


def _joined(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return "".join(_text_of(part, f"part {i}") for i, part in enumerate(content))


def _text_of(part: Any, name: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise ValueError(f"{name} is of type {kind!r}; models here read 'text' alone")
    unknown = set(part) - {"type", "text"}
    if unknown or not isinstance(part.get("text"), str):
        wrong = f"an unknown field {min(unknown)!r}" if unknown else "no string as its text"
        raise ValueError(f"{name} has {wrong}; it has the fields 'type' and 'text'")
    text: str = part["text"]
    return text


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


Content = Annotated[
    AnyText | None, BeforeValidator(_joined, json_schema_input_type=str | list[TextPart] | None)
]
Stops = Annotated[tuple[Text, ...], Field(max_length=MAX_STOPS)]
Stop = Annotated[
    Stops | None, BeforeValidator(_as_list, json_schema_input_type=Text | Stops | None)
]


class CalledFunction(FrozenModel):
    name: ToolName
    """The function's name."""
    arguments: AnyText
    """A JSON object in a string."""


class MessageToolCall(FrozenModel):
    """A call that an assistant of the conversation made."""

    id: Text
    """What `tool_call_id` of the answer repeats."""
    type: Literal["function"] = "function"
    """There are no other tools."""
    function: CalledFunction
    """What is to be run."""


def _by_role(schema: dict[str, Any]) -> None:
    """Say which fields go with which role; the checks themselves are in conversation.py."""
    fields = schema.pop("properties")
    for keyword in ("type", "required", "additionalProperties"):
        del schema[keyword]
    said = {"anyOf": [one for one in fields["content"]["anyOf"] if one.get("type") != "null"]}
    (calls,) = (one for one in fields["tool_calls"]["anyOf"] if one.get("type") == "array")
    (call_id,) = (one for one in fields["tool_call_id"]["anyOf"] if one.get("type") == "string")
    others = {"tool_calls": {"type": ["array", "null"], "maxItems": 0}}
    others["tool_call_id"] = {"type": "null"}

    def having(*roles: str, needs: str = "content", **own: Any) -> dict[str, Any]:
        role = {"type": "string", "enum": list(roles)}
        properties = fields | others | {"role": role} | own
        for name, field in properties.items():
            properties[name] = field | {"description": fields[name]["description"]}
        return {
            "type": "object",
            "properties": properties,
            "required": ["role", *needs.split()],
            "additionalProperties": False,
        }

    schema["anyOf"] = [
        having("system", "developer", "user", content=said),
        having("assistant", content=said, tool_calls=fields["tool_calls"]),
        having("assistant", needs="tool_calls", tool_calls=calls | {"minItems": 1}),
        having("tool", needs="content tool_call_id", content=said, tool_call_id=call_id),
    ]


class Message(FrozenModel):
    """One message. ``refusal`` and the like are what an answer that is sent back has empty."""

    model_config = ConfigDict(json_schema_extra=_by_role)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """`developer` is `system`."""
    content: Content = None
    """A string, or text parts."""
    tool_calls: tuple[MessageToolCall, ...] | None = None
    """What an assistant wanted to be run."""
    tool_call_id: Text | None = None
    """Which call a tool's message answers."""
    refusal: None = None
    """Null, as in answers."""
    audio: None = None
    """Null, as in answers."""
    function_call: None = None
    """Null, as in answers."""
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    """Empty, as in answers."""


class FunctionTool(FrozenModel):
    """A function of the client that the model may call."""

    name: ToolName
    """The function's name."""
    description: AnyText | None = None
    """What it does, for the model to read."""
    parameters: JsonObject | None = None
    """Its JSON schema."""
    strict: Literal[False] | None = None
    """Never: decoding is not constrained."""


class Tool(FrozenModel):
    """A tool of the client; there are functions only."""

    type: Literal["function"]
    """There are no other tools."""
    function: FunctionTool
    """What may be called."""


class StreamOptions(FrozenModel):
    """``include_usage``: a last chunk without choices says what was used."""

    include_usage: JsonBool = False
    """Add a last chunk with `usage`."""


class ResponseFormat(FrozenModel):
    """Text, and nothing else."""

    type: Literal["text"]
    """Nothing else: decoding is not constrained."""


Neutral = Annotated[JsonNumber, Field(ge=0, le=0)]


class ChatBody(FrozenModel):
    """The body of `POST /v1/chat/completions`."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    """`latentmas/<pipeline>`, the name of a loaded adapter, or the base model."""
    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    """The conversation; the last message of the user is the question."""
    stream: JsonBool | None = None
    """Answer in chunks, ended by `data: [DONE]`."""
    stream_options: StreamOptions | None = None
    """With `stream` only."""
    max_tokens: NumTokens | None = None
    """The most that each agent writes; null: as each agent says."""
    max_completion_tokens: NumTokens | None = None
    """The same, by its newer name."""
    temperature: JsonNumber | None = Field(default=None, ge=0.0, le=2.0)
    """0 takes the likeliest token each time; null: as each agent says."""
    top_p: JsonNumber | None = Field(default=None, gt=0.0, le=1.0)
    """Draw from the likeliest tokens that together have this share of the probability; null: as
    each agent says."""
    seed: Seed | None = None
    """The same seed draws the same random numbers; null: others each time."""
    stop: Stop = None
    """The answer ends in front of the first of these texts; up to 4."""
    logprobs: JsonBool | None = None
    """Tell the log-probability of each token of the answer."""
    top_logprobs: NumLogprobs | None = None
    """Tell so many of the likeliest beside it; with `logprobs` only."""
    tools: tuple[Tool, ...] | None = None
    """Functions that the answer may call."""
    tool_choice: Literal["auto", "none"] | None = None
    """`none` does not show the tools."""
    parallel_tool_calls: JsonBool | None = None
    """`false` keeps the first call and drops others."""
    response_format: ResponseFormat | None = None
    """There is nothing else than text."""
    latentmas: LatentOptions | None = None
    """What `POST /v1/reason` takes beyond OpenAI's fields."""

    n: Literal[1] | None = None
    """There is one answer."""
    store: Literal[False] | None = None
    """Nothing is stored."""
    frequency_penalty: Neutral | None = None
    """There is none."""
    presence_penalty: Neutral | None = None
    """There is none."""
    service_tier: Literal["auto", "default"] | None = None
    """There is one."""
    modalities: tuple[Literal["text"]] | None = None
    """There is nothing else."""
    user: AnyText | None = None
    """Taken, changes nothing, kept nowhere."""
    metadata: dict[str, AnyText] | None = None
    """Taken, changes nothing, kept nowhere."""
    safety_identifier: AnyText | None = None
    """Taken, changes nothing, kept nowhere."""
    prompt_cache_key: AnyText | None = None
    """Taken, changes nothing, kept nowhere."""


class Answered(BaseModel):
    """Base of what is sent back."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class AnswerCall(Answered):
    """In a stream ``index`` says which call it is."""

    id: str
    """What `tool_call_id` of the answer has to repeat."""
    type: Literal["function"] = "function"
    """There are no other tools."""
    function: CalledFunction
    """What is to be run."""


class AnswerMessage(Answered):
    """What the speaker said. ``content`` is None where it only called tools."""

    role: Literal["assistant"] = "assistant"
    """Always the assistant."""
    content: str | None
    """The answer; null beside calls without text."""
    refusal: None = None
    """Always null."""
    tool_calls: list[AnswerCall] | None = None
    """Functions that the answer calls."""


class Logprobs(Answered):
    """The tokens of the answer, each with its alternatives."""

    content: tuple[AnswerToken, ...] | None
    """Each token of the answer."""
    refusal: None = None
    """Always null."""


class Choice(Answered):
    """The one answer of a completion."""

    index: Literal[0] = 0
    """There is one answer."""
    message: AnswerMessage
    """The answer."""
    logprobs: Logprobs | None = None
    """Where they were asked for."""
    finish_reason: Literal["stop", "length", "tool_calls"]
    """`length`: `max_tokens` were written."""


class ChatUsage(Answered):
    """Sums over all agents."""

    prompt_tokens: int
    """Tokens that all agents read."""
    completion_tokens: int
    """Tokens that all agents wrote."""
    total_tokens: int
    """The sum of both."""


class RunTrace(Answered):
    """How the answer came about; the fields are those of `POST /v1/reason`."""

    pipeline: str
    """The pipeline that ran."""
    mode: str
    """The mode in which it ran."""
    latent_steps: int
    """Latent steps that all agents took."""
    agents: tuple[AgentTrace, ...]
    """What each turn did."""
    failed_agents: tuple[str, ...]
    """Agents that were to take part and did not."""
    transfer: Transfer
    """What hand-overs cost."""
    latency_ms: float
    """From the request to the answer."""
    routing: RoutingDecision | None = None
    """How the pipeline was chosen, with `latentmas/auto`."""


class ChatCompletion(Answered):
    """A whole answer."""

    id: str
    """The run's own id."""
    object: Literal["chat.completion"] = "chat.completion"
    """As OpenAI has it."""
    created: int
    """When it was answered, in seconds since 1970."""
    model: str
    """As the request named it."""
    choices: list[Choice]
    """The one answer."""
    usage: ChatUsage
    """Sums over all agents."""
    latentmas: RunTrace
    """How the answer came about."""


class Model(Answered):
    id: str
    """What `model` of a chat may say."""
    object: Literal["model"] = "model"
    """As OpenAI has it."""
    created: int
    """When the service started, in seconds since 1970."""
    owned_by: str = "latentmas"
    """Always `latentmas`."""
    root: str
    """The base model; of an adapter its own name."""
    parent: str | None = None
    """The base model of an adapter."""


class ModelList(Answered):
    """Whatever ``model`` may name."""

    object: Literal["list"] = "list"
    """As OpenAI has it."""
    data: list[Model]
    """Pipelines, the base model, then adapters."""
