"""OpenAI's messages as a conversation around one question; errors name the wrong message."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from deployments.api.openai.schema import Message, MessageToolCall
from latentmas_core.chat import ChatMessage, ToolCall
from latentmas_core.errors import ConfigError

SYSTEM_ROLES = ("system", "developer")


class Told(NamedTuple):
    """``tool_messages``: calls of tools since the question, and their answers."""

    system_prompt: str | None
    history: tuple[ChatMessage, ...]
    question: str
    tool_messages: tuple[ChatMessage, ...]


def read_messages(messages: Sequence[Message]) -> Told:
    """The question is what the user said last. ConfigError for what cannot be answered."""
    num_system = next(
        (i for i, message in enumerate(messages) if message.role not in SYSTEM_ROLES), len(messages)
    )
    asked_at = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
    if asked_at < 0:
        raise _error("messages", "holds no message of the user. Add one")
    _check_each(messages)
    _check_end(messages, asked_at)
    texts = [_content(messages, i) for i in range(num_system)]
    turns = [_turn(messages, i) for i in range(len(messages))]
    if not turns[asked_at].content.strip():
        raise _error(f"messages.{asked_at}.content", "is empty. Ask something")
    return Told(
        "\n\n".join(text for text in texts if text) or None,
        tuple(turns[num_system:asked_at]),
        turns[asked_at].content,
        tuple(turns[asked_at + 1 :]),
    )


def _check_end(messages: Sequence[Message], asked_at: int) -> None:
    """The next to speak must be the assistant."""
    last = len(messages) - 1
    role = messages[last].role
    if role not in ("user", "tool"):
        raise _error(
            f"messages.{last}.role",
            f"is {role!r}: the last message is the user's or a tool's, and is answered. An answer "
            "that was begun cannot be continued",
        )
    for i in range(asked_at + 1, last):
        if messages[i].role in SYSTEM_ROLES:
            raise _error(
                f"messages.{i}.role",
                f"is {messages[i].role!r} behind the last message of the user. Put it before that",
            )


def _check_each(messages: Sequence[Message]) -> None:
    called: set[str] = set()
    for i, message in enumerate(messages):
        for field in ("tool_calls", "tool_call_id"):
            owner = "assistant" if field == "tool_calls" else "tool"
            if getattr(message, field) and message.role != owner:
                raise _error(
                    f"messages.{i}.{field}", f"is given by {message.role!r}; only {owner!r} has it"
                )
        called.update(call.id for call in message.tool_calls or ())
        if message.role == "tool" and message.tool_call_id not in called:
            raise _error(
                f"messages.{i}.tool_call_id",
                f"is {message.tool_call_id!r}, which no call before it has. Answer a call",
            )


def _content(messages: Sequence[Message], i: int) -> str:
    content = messages[i].content
    if content is None and not messages[i].tool_calls:
        raise _error(f"messages.{i}.content", "is missing. Give a text, or parts of type 'text'")
    return content or ""


def _turn(messages: Sequence[Message], i: int) -> ChatMessage:
    message = messages[i]
    calls = message.tool_calls or ()
    return ChatMessage(
        role="system" if message.role == "developer" else message.role,
        content=_content(messages, i),
        tool_calls=tuple(
            _call(call, f"messages.{i}.tool_calls.{j}") for j, call in enumerate(calls)
        ),
        tool_call_id=message.tool_call_id,
    )


def _call(call: MessageToolCall, path: str) -> ToolCall:
    name, arguments = call.function.name, call.function.arguments
    try:
        values: Any = json.loads(arguments or "{}")
        return ToolCall(name=name, arguments=values, call_id=call.id)
    except (ValueError, RecursionError, ValidationError):
        raise _error(f"{path}.function.arguments", "is no JSON object in a string") from None


def _error(param: str, problem: str) -> ConfigError:
    return ConfigError(f"{param} {problem}.", param=param)
