"""One line in a replica's log for every stage that it ran: for whom, how long, how it ended."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from deployments.logs import log_event, set_origin
from deployments.messages import StageCall, StageFailed, StageMade
from latentmas_core.events import AgentFinished

logger = logging.getLogger(__name__)


@dataclass
class _Outcome:
    """What a stage told on its way."""

    outcome: str = "cut"
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latent_steps: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def take(self, message: object) -> None:
        match message:
            case AgentFinished(_, trace):
                self.prompt_tokens += trace.prompt_tokens
                self.completion_tokens += trace.completion_tokens
                self.latent_steps += trace.latent_steps
            case StageMade(num_bytes=num_bytes, num_bytes_read=num_bytes_read):
                self.outcome = "done"
                self.bytes_in, self.bytes_out = num_bytes_read, num_bytes
            case StageFailed(error):
                self.outcome, self.error = "failed", type(error).__name__


async def logged_stage(
    call: StageCall, messages: AsyncGenerator[Any, None]
) -> AsyncGenerator[Any, None]:
    """``messages`` as they are; whatever is logged meanwhile bears the ids of the call."""
    set_origin(call.origin)
    started_at = time.perf_counter()
    told = _Outcome()
    try:
        async with aclosing(messages):
            async for message in messages:
                told.take(message)
                yield message
    except (GeneratorExit, asyncio.CancelledError):
        told.outcome = "cut"
        raise
    except Exception as error:
        told.outcome, told.error = "failed", type(error).__name__
        raise
    finally:
        log_event(
            logger,
            "stage",
            stage=call.stage.name,
            group=call.stage.group,
            latency_ms=round((time.perf_counter() - started_at) * 1000),
            request_id=call.origin.request_id,
            run_id=call.origin.run_id,
            **vars(told),
        )
