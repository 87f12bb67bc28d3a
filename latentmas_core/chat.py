"""What was said before a question and since: turns of a conversation, calls of tools, tools.

Plain data in the form that chat templates read. Knows no template and no tokens.
"""

import json
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from latentmas_core.config import FrozenModel, Text

MAX_JSON_DEPTH = 32


def _readable(values: dict[str, Any]) -> dict[str, Any]:
    """JSON that a template can write down and a tokenizer can read."""
    if _depth(values) > MAX_JSON_DEPTH:
        raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} levels deep. Make it flatter")
    try:
        json.dumps(values, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        raise ValueError("it holds NaN, Infinity, or half a surrogate pair. Take it out") from None
    return values


def _depth(value: Any) -> int:
    """Levels of lists and objects; counts no further than one too many."""
    level, depth = [value], 0
    while level and depth <= MAX_JSON_DEPTH:
        containers = [part for part in level if isinstance(part, dict | list)]
        level = [
            part
            for container in containers
            for part in (container.values() if isinstance(container, dict) else container)
        ]
        depth += 1
    return depth


# The constraint refuses lone surrogates; the empty string is fine.
AnyText = Annotated[str, StringConstraints(min_length=0)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_readable)]
ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$", max_length=64)]


class ToolCall(FrozenModel):
    """An assistant's wish that a tool be run."""

    name: ToolName
    """The function's name."""
    arguments: JsonObject = Field(default_factory=dict)
    """By the names of the function's parameters."""
    call_id: Text | None = None
    """What the `tool_call_id` of the tool's answer repeats."""

    def as_template_input(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.call_id or "", "type": "function", "function": function}


class ChatMessage(FrozenModel):
    """One message. Only an assistant calls tools, only a tool answers a call."""

    role: Literal["system", "user", "assistant", "tool"]
    """Who says it."""
    content: AnyText = ""
    """What is said."""
    tool_calls: tuple[ToolCall, ...] = ()
    """What an assistant wants to be run."""
    tool_call_id: Text | None = None
    """Which call a tool's message answers."""

    @model_validator(mode="after")
    def _says_what_its_role_may(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls of a {self.role} message; only an assistant calls tools")
        if self.tool_call_id is not None and self.role != "tool":
            raise ValueError(f"tool_call_id of a {self.role} message; only tools answer calls")
        return self

    def as_template_input(self) -> dict[str, Any]:
        """The message as transformers' chat templates expect it."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [call.as_template_input() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class Conversation(NamedTuple):
    """What stands around a question: messages before it, and calls of tools since."""

    before: tuple[ChatMessage, ...] = ()
    since: tuple[ChatMessage, ...] = ()


class ToolSpec(FrozenModel):
    """A function that the answer may call."""

    name: ToolName
    """The function's name."""
    description: AnyText | None = None
    """What it does, for the model to read."""
    parameters: JsonObject | None = None
    """Its JSON schema."""

    def as_template_input(self) -> dict[str, Any]:
        described = {"name": self.name, "description": self.description}
        function = described | {"parameters": self.parameters}
        given = {key: value for key, value in function.items() if value is not None}
        return {"type": "function", "function": given}


def check_order(history: tuple[ChatMessage, ...], since: tuple[ChatMessage, ...]) -> None:
    """Raise ValueError unless the messages since a question are calls and their answers.

    ``history`` may end with anything; what is ``since`` begins with an assistant's message and ends
    with a tool's, since the next to speak is the assistant.
    """
    if any(message.role == "tool" for message in history[:1]):
        raise ValueError("history begins with a tool's message; a tool answers an assistant's call")
    wrong = next((m.role for m in since if m.role not in ("assistant", "tool")), None)
    if wrong is not None:
        raise ValueError(
            f"tool_messages has a {wrong} message; behind the question there are only calls of "
            "tools and their answers. Put it into history"
        )
    if since and (since[0].role, since[-1].role) != ("assistant", "tool"):
        raise ValueError(
            "tool_messages goes from an assistant's message to a tool's; the answer follows that"
        )
