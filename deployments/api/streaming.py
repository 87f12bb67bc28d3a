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
    except LatentMASError as error:
        yield _message("error", error_body(kind_of(error), error.message, error.param))
    except Exception:
        logger.exception("a stream failed")
        message = "internal error; see the log of the service."
        yield _message("error", error_body(INTERNAL, message, None))


def describe(event: Event) -> tuple[str, dict[str, Any]]:
    """The name of an event on the wire, and its content."""
    match event:
        case AgentStarted(agent, stage):
            return "agent.started", {"agent": agent, "stage": stage}
        case AgentThought(agent, latent_steps):
            return "agent.thought", {"agent": agent, "latent_steps": latent_steps}
        case AgentFinished(agent, trace):
            return "agent.finished", {"agent": agent, "trace": trace.model_dump(mode="json")}
        case StageRetried(stage, attempt, reason):
            return "stage.retried", {"stage": stage, "attempt": attempt, "reason": reason}
        case StageGivenUp(stage, agents, reason):
            return "stage.failed", {"stage": stage, "agents": list(agents), "reason": reason}
        case AnswerDelta(text):
            return "answer.delta", {"text": text}
        case AnswerDone(result):
            return "answer.done", result.model_dump(mode="json", by_alias=True)


def _message(name: str, payload: dict[str, Any]) -> str:
    content = json.dumps(payload, ensure_ascii=False).translate(_LINE_ENDS)
    return f"event: {name}\ndata: {content}\n\n"
