"""Server-sent events: how what happens in a run looks on the wire."""

import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from deployments.api.errors import INTERNAL, INTERNAL_MESSAGE, error_body, kind_of
from latentmas_core.errors import LatentMASError
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

logger = logging.getLogger(__name__)

MEDIA_TYPE = "text/event-stream"
# What lies between must hand every message on at once.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event_schema(content: dict[str, Any], *names: str) -> dict[str, Any]:
    """What OpenAPI says of a message of a stream with JSON in it; ``names`` are what it is called,
    none if it is not."""
    fields: dict[str, Any] = {
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": content,
        }
    }
    if names:
        fields["event"] = {"type": "string", "enum": list(names)}
    return {"type": "object", "properties": fields, "required": list(fields)}


ERROR_SCHEMA = {"$ref": "#/components/schemas/ErrorBody"}
_AT_MS = {"at_ms": {"type": "number", "minimum": 0}}

# What OpenAPI says of a call that may answer with a stream.
AS_EVENTS = {
    "description": "The result or, with `stream`, server-sent events; the last is `answer.done` "
    "or `error` (docs/http.md).",
    "content": {
        MEDIA_TYPE: {
            "schema": {
                "anyOf": [
                    event_schema(
                        {"type": "object", "properties": _AT_MS, "required": ["at_ms"]},
                        *(
                            "routing.decided",
                            "stage.started",
                            "stage.finished",
                            "stage.retried",
                            "stage.failed",
                        ),
                        *("agent.started", "agent.phase", "agent.thought", "agent.finished"),
                        *("tool.started", "tool.finished", "answer.delta", "answer.done"),
                    ),
                    event_schema(ERROR_SCHEMA, "error"),
                ]
            }
        }
    },
}

# Characters that many readers of lines, Python's among them, take for the end of one.
_LINE_ENDS = str.maketrans({char: f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"})


async def server_sent_events(events: AsyncIterator[Event]) -> AsyncGenerator[str, None]:
    """One message per event; an error ends the stream with a message named ``error``.

    ``at_ms`` is when an event came here, since the first was asked for: one clock for all of them,
    whatever machine they come from.
    """
    began_at = time.perf_counter()
    try:
        async for event in events:
            at_ms = round(1000.0 * (time.perf_counter() - began_at), 3)
            name, payload = describe(event)
            yield _message(name, payload | {"at_ms": at_ms})
    except Exception as error:  # noqa: BLE001 - whatever it is, the reader is told
        yield _message("error", stream_error(error))


async def begun(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """The same events, when the first is there. Raises what is raised in its place."""
    first = await anext(events)

    async def all_events() -> AsyncGenerator[Event, None]:
        async with aclosing(events):
            yield first
            async for event in events:
                yield event

    return all_events()


def stream_error(error: Exception) -> dict[str, Any]:
    """What a reader is told of an error once a stream has begun. One of ours goes to the log."""
    if isinstance(error, LatentMASError):
        return error_body(kind_of(error), error.message, error.param)
    logger.error("a stream failed", exc_info=error)
    return error_body(INTERNAL, INTERNAL_MESSAGE, None)


def describe(event: Event) -> tuple[str, dict[str, Any]]:
    """The name of an event on the wire, and its content."""
    match event:
        case Routed(decision):
            return "routing.decided", {"routing": decision.model_dump(mode="json")}
        case StageStarted(stage, group, agents, attempt):
            content = {"stage": stage, "group": group, "agents": list(agents), "attempt": attempt}
            return "stage.started", content
        case StageFinished(stage, stage_trace):
            content = {"stage": stage, "trace": stage_trace.model_dump(mode="json")}
            return "stage.finished", content
        case AgentPhase(agent, phase):
            return "agent.phase", {"agent": agent, "phase": phase.value}
        case AgentStarted(agent, stage):
            return "agent.started", {"agent": agent, "stage": stage}
        case AgentThought(agent, latent_steps, lens):
            seen = {} if lens is None else {"lens": lens.model_dump(mode="json")}
            return "agent.thought", {"agent": agent, "latent_steps": latent_steps, **seen}
        case AgentFinished(agent, trace):
            return "agent.finished", {"agent": agent, "trace": trace.model_dump(mode="json")}
        case StageRetried(stage, attempt, reason):
            return "stage.retried", {"stage": stage, "attempt": attempt, "reason": reason}
        case StageGivenUp(stage, agents, reason):
            return "stage.failed", {"stage": stage, "agents": list(agents), "reason": reason}
        case ToolStarted(call_id, round_, tool, arguments):
            called = {"call_id": call_id, "round": round_, "name": tool, "arguments": arguments}
            return "tool.started", called
        case ToolFinished(tool_trace):
            return "tool.finished", tool_trace.model_dump(mode="json")
        case AnswerDelta(text, logprobs):
            tokens = [token.model_dump(mode="json") for token in logprobs]
            return "answer.delta", {"text": text} | ({"logprobs": tokens} if tokens else {})
        case AnswerDone(result):
            return "answer.done", result.model_dump(mode="json", by_alias=True)


def _message(name: str, payload: dict[str, Any]) -> str:
    return f"event: {name}\n{data_message(payload)}"


def data_message(payload: dict[str, Any]) -> str:
    """A message without a name."""
    content = json.dumps(payload, ensure_ascii=False).translate(_LINE_ENDS)
    return f"data: {content}\n\n"
