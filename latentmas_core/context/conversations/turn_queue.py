"""Turns on one conversation, one after the other: waiting for one's turn and keeping it.

The order is in the database (tickets.py). What is here is how one process waits: it is woken when a
turn of its own has ended, and looks by itself now and then for those of others.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.context.conversations.names import new_id
from latentmas_core.context.conversations.store import ConversationStore, Entry
from latentmas_core.context.conversations.tickets import Ticket
from latentmas_core.errors import ConflictError, StoreError

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25
RENEWALS_PER_LEASE = 3

T = TypeVar("T")


class _Waiter(NamedTuple):
    """Somebody who waits on ``loop`` for a turn to end."""

    loop: asyncio.AbstractEventLoop
    event: asyncio.Event


class TurnQueue:
    """For any number of event loops of one process."""

    def __init__(self, store: ConversationStore, config: ConversationsConfig) -> None:
        self._store = store
        self._config = config
        self._waiting: defaultdict[int, list[_Waiter]] = defaultdict(list)

    @asynccontextmanager
    async def turn(
        self, tenant: str, conversation_id: str, *, system_prompt: str | None
    ) -> AsyncIterator[Entry]:
        """Inside it is this turn's turn. ConflictError if it does not come within max_wait_s."""
        entered = self._store.enter(tenant, conversation_id, new_id(), system_prompt=system_prompt)
        entering = asyncio.create_task(entered)
        try:
            entry = await _to_its_end(entering)
            async with self._renewed(entry.ticket):
                if not entry.has_turn:
                    await self._wait(entry.ticket)
                yield entry
        finally:
            if _has_succeeded(entering):
                await _to_its_end(asyncio.create_task(self._leave(entering.result().ticket)))

    async def _wait(self, ticket: Ticket) -> None:
        woken = asyncio.Event()
        waiter = _Waiter(asyncio.get_running_loop(), woken)
        waiting = self._waiting[ticket.conversation_key]
        waiting.append(waiter)
        try:
            async with asyncio.timeout(self._config.max_wait_s):
                while not await self._store.claim(ticket):
                    await _woken(woken)
        except TimeoutError:
            raise ConflictError(
                f"conversation {ticket.conversation_id!r} is busy: other turns on it had not ended "
                f"after {self._config.max_wait_s:g} s (conversations.max_wait_s). Try again later.",
                param="conversation_id",
            ) from None
        finally:
            waiting.remove(waiter)
            if not waiting:
                del self._waiting[ticket.conversation_key]

    async def _leave(self, ticket: Ticket) -> None:
        try:
            await self._store.leave(ticket)
        except StoreError:
            logger.warning(
                "a turn on conversation %s ended and could not say so; the next begins after %g s",
                ticket.conversation_id,
                self._config.lease_s,
            )
        for woken in tuple(self._waiting.get(ticket.conversation_key, ())):
            woken.loop.call_soon_threadsafe(woken.event.set)

    @asynccontextmanager
    async def _renewed(self, ticket: Ticket) -> AsyncIterator[None]:
        renewing = asyncio.create_task(self._keep_renewing(ticket))
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])

    async def _keep_renewing(self, ticket: Ticket) -> None:
        """Until it is cancelled or the ticket is gone; whoever then stores is told."""
        is_held = True
        while is_held:
            await asyncio.sleep(self._config.lease_s / RENEWALS_PER_LEASE)
            try:
                is_held = await self._store.renew(ticket)
            except StoreError:
                continue  # it was logged; the lease may outlast the failure


async def _woken(woken: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(LOOK_EVERY_S):
            await woken.wait()
    except TimeoutError:
        return
    woken.clear()


async def _to_its_end(task: asyncio.Task[T]) -> T:
    """Whoever is cancelled meanwhile goes once the task is done."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _has_succeeded(task: asyncio.Task[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
