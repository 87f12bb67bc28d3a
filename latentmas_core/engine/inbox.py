"""Lets other threads and event loops ask one thread to do things. Knows nothing of engines."""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

Command = Callable[[], None]
Post = Callable[[Command], None]


class Inbox:
    """Commands for the thread that calls ``run_commands``, in the order they were posted."""

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._is_closed = False

    def post(self, command: Command) -> None:
        """Ask without waiting for an answer; may be called from any thread."""
        with self._lock:
            if not self._is_closed:
                self._commands.put(command)
                return
            command()

    def close(self) -> None:
        """The thread is about to end: run what is left, and later commands where they are posted.

        So nobody waits for an answer that never comes; one lock keeps the commands apart.
        """
        with self._lock:
            self._is_closed = True
            self.run_commands()

    async def call(
        self, function: Callable[[], T], *, undo: Callable[[T], None] | None = None
    ) -> T:
        """Ask and await the answer.

        A caller that is cancelled meanwhile never sees the answer: ``undo`` then gets it, on the
        thread of the inbox.
        """
        future: Future[T] = Future()
        self.post(lambda: _settle(future, function))
        answer = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            # Nobody else will look at it, and asyncio would complain about an error in it.
            answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())
            if undo is not None:
                self.post(lambda: _undo(future, undo))
            raise

    def run_commands(self, *, timeout_s: float | None = 0.0) -> None:
        """Run what was posted; wait so long for something, with None for ever."""
        command = self._next(timeout_s)
        while command is not None:
            command()
            command = self._next(0.0)

    def _next(self, timeout_s: float | None) -> Command | None:
        try:
            return self._commands.get(timeout=timeout_s)
        except queue.Empty:
            return None


def _settle(future: Future[T], function: Callable[[], T]) -> None:
    try:
        future.set_result(function())
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the caller
        future.set_exception(error)


def _undo(future: Future[T], undo: Callable[[T], None]) -> None:
    # Posted behind the command itself, so the future is done.
    if future.exception() is None:
        undo(future.result())
