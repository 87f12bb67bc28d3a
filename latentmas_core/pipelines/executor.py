"""Runs plans: events as they come, then the result; every memory is given back.

Knows nothing of engines or deployments; an ``AgentRunner`` runs the stages.
"""

import asyncio
import secrets
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Generic, TypeVar

from latentmas_core.events import AnswerDone, Event, Routed
from latentmas_core.pipelines.plan import Plan
from latentmas_core.pipelines.retries import RetryPolicy
from latentmas_core.pipelines.runner import AgentRunner
from latentmas_core.pipelines.walk import Walk
from latentmas_core.request import ReasonRequest
from latentmas_core.result import Result
from latentmas_core.routing.domains import RoutingDecision

MemoryRef = TypeVar("MemoryRef")

SEED_BITS = 31


NO_RETRIES = RetryPolicy()


class Executor(Generic[MemoryRef]):
    """Runs any number of plans at the same time; it holds nothing between them."""

    def __init__(
        self, runner: AgentRunner[MemoryRef], *, retries: RetryPolicy = NO_RETRIES
    ) -> None:
        self._runner = runner
        self._retries = retries

    async def run(
        self,
        plan: Plan,
        request: ReasonRequest,
        *,
        run_id: str | None = None,
        routing: RoutingDecision | None = None,
    ) -> AsyncGenerator[Event, None]:
        """What happens, as it happens, then ``AnswerDone``; mode ``single`` runs the speaker only.
        ``run_id`` becomes the result's, and so does ``routing``, which is told before all else.

        The first stage that fails, and is not to be done without, cancels the others and its error
        is raised as it was. DeadlineError after ``request.timeout_s``. Closing the iteration
        cancels all stages. Either way every memory is given back first.
        """
        if routing is not None:
            yield Routed(routing)
        plan = plan.in_mode(request.mode)
        if self._retries.max_attempts > 1 and request.seed is None:
            # An answer that is begun again has to begin with the same words.
            request = request.model_copy(update={"seed": secrets.randbits(SEED_BITS)})
        walk = Walk(self._runner, plan, request, self._retries, run_id=run_id or new_run_id())
        walking = asyncio.create_task(walk.run())
        try:
            while (event := await walk.events.get()) is not None:
                yield event
            await walking
        finally:
            walking.cancel()
            await asyncio.wait([walking])
            _note_outcome(walking)
        yield AnswerDone(walk.result().model_copy(update={"routing": routing}))


def new_run_id() -> str:
    """Unique over all ingresses; it is the ``id`` of the result."""
    return f"reason-{uuid.uuid4().hex}"


async def result_of(events: AsyncIterator[Event]) -> Result:
    """Iterate to the end and return the result."""
    result: Result | None = None
    async for event in events:
        if isinstance(event, AnswerDone):
            result = event.result
    assert result is not None, "a run ended without AnswerDone"
    return result


def _note_outcome(task: asyncio.Task[None]) -> None:
    """An error that came while the run was being closed is nobody's; asyncio would log it."""
    if not task.cancelled():
        task.exception()
