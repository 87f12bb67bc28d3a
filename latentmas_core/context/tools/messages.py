"""Calls of tools as messages: what a model is shown of those that it made."""

from collections.abc import Sequence
from itertools import groupby

from latentmas_core.chat import ChatMessage, ToolCall
from latentmas_core.result import ToolCallTrace


def messages_of(traces: Sequence[ToolCallTrace]) -> tuple[ChatMessage, ...]:
    """All rounds of a run, as a later question is told of them."""
    rounds = groupby(traces, key=lambda trace: trace.round)
    return tuple(message for _, calls in rounds for message in messages_of_round("", tuple(calls)))


def messages_of_round(content: str, traces: Sequence[ToolCallTrace]) -> list[ChatMessage]:
    """An answer with calls, ``content`` being what it says beside them, then what they gave."""
    calls = tuple(
        ToolCall(name=trace.name, arguments=trace.arguments, call_id=trace.call_id)
        for trace in traces
    )
    answers = [
        ChatMessage(role="tool", content=trace.text, tool_call_id=trace.call_id) for trace in traces
    ]
    return [ChatMessage(role="assistant", content=content, tool_calls=calls), *answers]
