"""Lets a crowd in one by one, so that whoever asks for little need not wait behind all of it."""

import asyncio
import time
from collections.abc import Awaitable, Callable

# The first steps of a request are some milliseconds of work in the proxy, and more in the ingress.
PACE_S = 0.015
# A crowd so large that it would wait for longer goes through faster.
MAX_WAIT_S = 3.0


class Turnstile:
    """Whoever comes alone passes at once; of a crowd one every ``PACE_S``.

    What two hundred requests do first would otherwise stand in every queue from here to the ingress
    before the next probe, for a second or two.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._turn = asyncio.Lock()  # first come, first served
        self._opens_at = clock()
        self._num_waiting = 0

    async def pass_through(self) -> None:
        """Returns when it is one's turn."""
        self._num_waiting += 1
        try:
            async with self._turn:
                await self._sleep(max(0.0, self._opens_at - self._clock()))
                pace_s = min(PACE_S, MAX_WAIT_S / self._num_waiting)
                self._opens_at = self._clock() + pace_s
        finally:
            self._num_waiting -= 1
