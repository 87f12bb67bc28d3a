"""The time that a request has before its agents are asked: for documents, and for its turn."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from latentmas_core.errors import DeadlineError


class Deadline:
    """``timeout_s`` from now on; None: no limit."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._began_at = time.monotonic()

    def remaining_s(self) -> float | None:
        """More than 0, or None; else DeadlineError."""
        if self._timeout_s is None:
            return None
        remaining_s = self._timeout_s - (time.monotonic() - self._began_at)
        if remaining_s <= 0.0:
            raise self._is_over(self._timeout_s)
        return remaining_s

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """What goes on inside is ended with DeadlineError when the time is over."""
        try:
            async with asyncio.timeout(self.remaining_s()) as timeout:
                yield
        except TimeoutError:
            if self._timeout_s is None or not timeout.expired():
                raise
            raise self._is_over(self._timeout_s) from None

    @staticmethod
    def _is_over(timeout_s: float) -> DeadlineError:
        return DeadlineError(
            f"timeout_s is {timeout_s:g}; that was over before the agents were asked: documents "
            "were not read yet, or other turns on the conversation had not ended. Allow more time, "
            "or send fewer documents.",
            param="timeout_s",
        )
