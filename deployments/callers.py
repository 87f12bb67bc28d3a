"""Ends the work of callers that died. Ray cancels what a lost *connection* had asked for, but when
the process that asked is gone, its calls go on and nobody hears of it. Knows no Ray.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

logger = logging.getLogger(__name__)

PERIOD_S = 2.0


class CallerWatch:
    """Cancels tasks whose caller is not there any more.

    ``is_alive`` tells of a caller by its name; it may block, and is asked on another thread, once
    in ``period_s`` while anything is watched.
    """

    def __init__(self, is_alive: Callable[[str], bool], *, period_s: float = PERIOD_S) -> None:
        self._is_alive = is_alive
        self._period_s = period_s
        self._tasks: dict[str, set[asyncio.Task[Any]]] = {}
        self._watching: asyncio.Task[None] | None = None

    @property
    def num_watched(self) -> int:
        """Callers with work under way."""
        return len(self._tasks)

    @asynccontextmanager
    async def watched(self, caller: str | None) -> AsyncIterator[None]:
        """Cancel the current task if ``caller`` dies within the block."""
        task = asyncio.current_task()
        if caller is None or task is None:
            yield
            return
        self._tasks.setdefault(caller, set()).add(task)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self._forget(caller, task)

    def _forget(self, caller: str, task: asyncio.Task[Any]) -> None:
        tasks = self._tasks[caller]
        tasks.discard(task)
        if not tasks:
            del self._tasks[caller]

    async def _watch(self) -> None:
        try:
            while self._tasks:
                await asyncio.sleep(self._period_s)
                for caller in list(self._tasks):
                    if not await self._lives(caller):
                        self._cancel(caller)
        finally:
            self._watching = None

    async def _lives(self, caller: str) -> bool:
        try:
            return await asyncio.to_thread(self._is_alive, caller)
        except Exception:
            logger.exception("cannot ask for %s; it is taken to live", caller)
            return True

    def _cancel(self, caller: str) -> None:
        tasks = self._tasks.get(caller, set())
        logger.warning("%s died: %d stages that it asked for are ended", caller, len(tasks))
        for task in tasks:
            task.cancel()
