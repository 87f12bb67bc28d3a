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
    text: AnyText


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
    """``arguments``: a JSON object in a string."""

    name: ToolName
    arguments: AnyText


class MessageToolCall(FrozenModel):
    """A call that an assistant of the conversation made."""

    id: Text
    type: Literal["function"] = "function"
    function: CalledFunction


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
        return {
            "type": "object",
            "properties": fields | others | {"role": role} | own,
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
    content: Content = None
    tool_calls: tuple[MessageToolCall, ...] | None = None
    tool_call_id: Text | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class FunctionTool(FrozenModel):
    """A function of the client that the model may call."""

    name: ToolName
    description: AnyText | None = None
    parameters: JsonObject | None = None
    strict: Literal[False] | None = None


class Tool(FrozenModel):
    """A tool of the client; there are functions only."""

    type: Literal["function"]
    function: FunctionTool


class StreamOptions(FrozenModel):
    """``include_usage``: a last chunk without choices says what was used."""

    include_usage: JsonBool = False


class ResponseFormat(FrozenModel):
    """Text, and nothing else."""

    type: Literal["text"]


Neutral = Annotated[JsonNumber, Field(ge=0, le=0)]


class ChatBody(FrozenModel):
    """The body of `POST /v1/chat/completions`.

    `model`: `latentmas/<pipeline>`, the name of a loaded adapter, or the base model. `user`,
    `metadata`, `safety_identifier` and `prompt_cache_key` change nothing and are kept nowhere.
    """

    model: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    stream: JsonBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: NumTokens | None = None
    max_completion_tokens: NumTokens | None = None
    temperature: JsonNumber | None = Field(default=None, ge=0.0, le=2.0)
    top_p: JsonNumber | None = Field(default=None, gt=0.0, le=1.0)
    seed: Seed | None = None
    stop: Stop = None
    logprobs: JsonBool | None = None
    top_logprobs: NumLogprobs | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: JsonBool | None = None
    response_format: ResponseFormat | None = None
    latentmas: LatentOptions | None = None

    n: Literal[1] | None = None
    store: Literal[False] | None = None
    frequency_penalty: Neutral | None = None
    presence_penalty: Neutral | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: tuple[Literal["text"]] | None = None
    user: AnyText | None = None
    metadata: dict[str, AnyText] | None = None
    safety_identifier: AnyText | None = None
    prompt_cache_key: AnyText | None = None


class Answered(BaseModel):
    """Base of what is sent back."""

    model_config = ConfigDict(frozen=True)


class AnswerCall(Answered):
    """In a stream ``index`` says which call it is."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AnswerMessage(Answered):
    """What the speaker said. ``content`` is None where it only called tools."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[AnswerCall] | None = None


class Logprobs(Answered):
    """The tokens of the answer, each with its alternatives."""

    content: tuple[AnswerToken, ...] | None
    refusal: None = None


class Choice(Answered):
    """The one answer of a completion."""

    index: Literal[0] = 0
    message: AnswerMessage
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatUsage(Answered):
    """Sums over all agents."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class RunTrace(Answered):
    """How the answer came about; the fields are those of `POST /v1/reason`."""

    pipeline: str
    mode: str
    latent_steps: int
    agents: tuple[AgentTrace, ...]
    failed_agents: tuple[str, ...]
    transfer: Transfer
    latency_ms: float
    routing: RoutingDecision | None = None


class ChatCompletion(Answered):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage
    latentmas: RunTrace


class Model(Answered):
    """``parent``: the base model of an adapter."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "latentmas"
    root: str
    parent: str | None = None


class ModelList(Answered):
    """Whatever ``model`` may name."""

    object: Literal["list"] = "list"
    data: list[Model]
