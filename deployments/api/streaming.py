"""Server-sent events: how what happens in a run looks on the wire."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from deployments.api.errors import INTERNAL, error_body, kind_of
from latentmas_core.errors import LatentMASError
from latentmas_core.events import (
    AgentFinished,
    AgentStarted,
    AgentThought,
    AnswerDelta,
    AnswerDone,
    Event,
    StageGivenUp,
    StageRetried,
)

logger = logging.getLogger(__name__)

MEDIA_TYPE = "text/event-stream"
# What lies between must hand every message on at once.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

# Characters that many readers of lines, Python's among them, take for the end of one.
_LINE_ENDS = str.maketrans({char: f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"})


async def server_sent_events(events: AsyncIterator[Event]) -> AsyncGenerator[str, None]:
    """One message per event; an error ends the stream with a message named ``error``."""
    try:
        async for event in events:
            name, payload = describe(event)
            yield _message(name, payload)
    except Exception as error:  # noqa: BLE001 - whatever it is, the reader is told
        yield _message("error", stream_error(error))


def stream_error(error: Exception) -> dict[str, Any]:
    """What a reader is told of an error once a stream has begun. One of ours goes to the log."""
    if isinstance(error, LatentMASError):
        return error_body(kind_of(error), error.message, error.param)
    logger.error("a stream failed", exc_info=error)
    return error_body(INTERNAL, "internal error; see the log of the service.", None)


def describe(event: Event) -> tuple[str, dict[str, Any]]:
    """The name of an event on the wire, and its content."""
    match event:
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
