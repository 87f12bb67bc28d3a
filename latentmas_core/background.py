"""An event loop on a thread of its own, so that blocking callers can use asynchronous code.

Works beside a loop that the caller's thread may already run, as notebooks do.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from latentmas_core.errors import EngineError

T = TypeVar("T")


class BackgroundLoop:
    """Runs coroutines and asynchronous generators for any thread until it is closed."""

    def __init__(self) -> None:
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._is_closed = False
        self._last: Callable[[], Awaitable[None]] | None = None
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(started)), name="latentmas-loop", daemon=True
        )
        self._thread.start()
        self._loop = started.result()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for ``work``; it is cancelled if the waiting is interrupted."""
        if self._is_closed:
            work.close()
            raise _closed()
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise _closed() from None
        finally:
            future.cancel()  # does nothing to work that has ended

    def iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """The items as they come; leaving early closes ``items`` and waits until it is closed."""
        received: queue.SimpleQueue[T | None] = queue.SimpleQueue()  # None: the pump has ended
        pump = self.run(_start(items, received))
        has_ended = False
        try:
            while (item := received.get()) is not None:
                yield item
            has_ended = True
            if pump.cancelled():
                raise _closed()
            pump.result()
        finally:
            if not has_ended:
                self._cancel(pump)
            while not has_ended:
                has_ended = received.get() is None

    def _cancel(self, task: asyncio.Task[None]) -> None:
        with suppress(RuntimeError):  # a loop that was closed has cancelled its tasks
            self._loop.call_soon_threadsafe(task.cancel)

    def close(self, last: Callable[[], Awaitable[None]] | None = None) -> None:
        """Cancel what still runs, wait for it, do what comes ``last`` and end the thread."""
        if not self._is_closed:
            self._is_closed = True
            self._last = last
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _main(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        self._stop = asyncio.Event()
        started.set_result(asyncio.get_running_loop())
        await self._stop.wait()
        if self._last is not None:
            await _end_others()
            await self._last()
        # asyncio.run cancels what is left


async def _end_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others)


def _closed() -> EngineError:
    return EngineError("the system was closed. Make a new one.")


async def _start(
    items: AsyncGenerator[T, None], received: "queue.SimpleQueue[T | None]"
) -> asyncio.Task[None]:
    task = asyncio.create_task(_pump(items, received))
    task.add_done_callback(lambda _: received.put(None))
    return task


async def _pump(items: AsyncGenerator[T, None], received: "queue.SimpleQueue[T | None]") -> None:
    async with aclosing(items):
        async for item in items:
            received.put(item)
