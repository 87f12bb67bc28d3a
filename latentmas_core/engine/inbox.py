"""Lets other threads and event loops ask one thread to do things. Knows nothing of engines."""

import asyncio
import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

Command = Callable[[], None]


class Inbox:
    """Commands for the thread that calls ``run_commands``, in the order they were posted."""

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()

    def post(self, command: Command) -> None:
        """Ask without waiting for an answer; may be called from any thread."""
        self._commands.put(command)

    async def call(
        self, function: Callable[[], T], *, undo: Callable[[T], None] | None = None
    ) -> T:
        """Ask and await the answer.

        A caller that is cancelled meanwhile never sees the answer: ``undo`` then gets it, on the
        thread of the inbox.
        """
        future: Future[T] = Future()
        self.post(lambda: _settle(future, function))
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            if undo is not None:
                self.post(lambda: _undo(future, undo))
            raise

    def call_and_wait(self, function: Callable[[], T]) -> T:
        """Ask and block until the answer is there."""
        future: Future[T] = Future()
        self.post(lambda: _settle(future, function))
        return future.result()

    def run_commands(self, *, is_blocking: bool) -> None:
        """Run what was posted; with ``is_blocking`` wait until there is something."""
        if is_blocking:
            self._commands.get()()
        while not self._commands.empty():
            self._commands.get()()


def _settle(future: Future[T], function: Callable[[], T]) -> None:
    try:
        future.set_result(function())
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the caller
        future.set_exception(error)


def _undo(future: Future[T], undo: Callable[[T], None]) -> None:
    # Posted behind the command itself, so the future is done.
    if future.exception() is None:
        undo(future.result())
