"""Reads the events of ``POST /v1/reason`` from the wire: docs/http.md says how they are written."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from latentmas_core.events import (
    AgentFinished,
    AgentPhase,
    AgentStarted,
    AgentThought,
    AnswerDelta,
    AnswerDone,
    Event,
    Routed,
    StageFinished,
    StageGivenUp,
    StageRetried,
    StageStarted,
    ToolFinished,
    ToolStarted,
)
from latentmas_core.result import Result, ToolCallTrace
from latentmas_core.routing.domains import RoutingDecision

_KINDS: Mapping[str, type[Any]] = {
    "tool.started": ToolStarted,
    "stage.started": StageStarted,
    "stage.finished": StageFinished,
    "stage.retried": StageRetried,
    "stage.failed": StageGivenUp,
    "agent.started": AgentStarted,
    "agent.phase": AgentPhase,
    "agent.thought": AgentThought,
    "agent.finished": AgentFinished,
    "answer.delta": AnswerDelta,
}


def server_sent_events(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Name and content of each message that has any; the standard's other fields are left out."""
    name, content = "", []
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            content.append(value)
        elif not line and content:
            yield name, "\n".join(content)
            name, content = "", []


def read_event(name: str, payload: Mapping[str, Any]) -> Event | None:
    """None for a kind of event that is not known here. Raises pydantic's ValidationError."""
    if name == "answer.done":
        return AnswerDone(Result.model_validate(_without_time(payload)))
    if name == "tool.finished":
        return ToolFinished(ToolCallTrace.model_validate(_without_time(payload)))
    if name == "routing.decided":
        return Routed(RoutingDecision.model_validate(payload["routing"]))
    if name not in _KINDS:
        return None
    event: Event = _reader(name).validate_python(payload)
    return event


def _without_time(payload: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in payload.items() if key != "at_ms"}


@cache
def _reader(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(_KINDS[name])
