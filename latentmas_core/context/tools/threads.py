"""Blocking functions beside an event loop, in threads that nobody has to wait for."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from latentmas_core.errors import ToolError


class _Outcome(NamedTuple):
    value: object = None
    error: Exception | None = None


class InThreads:
    """``function`` as an async one. Who stops waiting leaves the thread behind, to its own end.

    The threads are daemons and no pool's: one that hangs keeps neither the process nor other calls
    from ending. Each that hangs counts against ``max_running``, so they cannot pile up.
    """

    def __init__(self, function: Callable[[Any], object], name: str, max_running: int) -> None:
        self._function = function
        self._name = name
        self._max_running = max_running
        self._free = threading.Semaphore(max_running)

    async def __call__(self, argument: object) -> object:
        """What the function returns, or raises. ToolError while too many calls run."""
        if not self._free.acquire(blocking=False):
            raise ToolError(
                f"{self._name} is busy with {self._max_running} calls, which is its limit. Answer "
                "without it."
            )
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[_Outcome] = loop.create_future()
        context = contextvars.copy_context()

        def work() -> None:
            outcome = context.run(self._outcome_of, argument)
            self._free.release()
            with suppress(RuntimeError):  # the loop was closed, so nobody waits
                loop.call_soon_threadsafe(_tell, waiting, outcome)

        try:
            threading.Thread(target=work, name=f"tool-{self._name}", daemon=True).start()
        except RuntimeError:
            self._free.release()
            raise
        outcome = await waiting
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def _outcome_of(self, argument: object) -> _Outcome:
        try:
            return _Outcome(self._function(argument))
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to who waits
            return _Outcome(error=error)
        except BaseException as error:  # noqa: BLE001 - SystemExit would end the waiting loop
            return _Outcome(error=ToolError(f"{self._name} ended with {type(error).__name__}."))


def _tell(waiting: "asyncio.Future[_Outcome]", outcome: _Outcome) -> None:
    if not waiting.done():
        waiting.set_result(outcome)
