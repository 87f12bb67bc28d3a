"""Threads for torch beside the engine's own that do not slow its steps down."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

from latentmas_core.errors import EngineError

P = ParamSpec("P")
T = TypeVar("T")


class QuietThreads:
    """A pool of threads that torch gives no team of threads, whatever they compute.

    OpenMP counts the threads of all teams of a process. With more of them than cores they no longer
    spin between two operations, and every operation of a step waits for the system to wake its
    team: one large copy on another thread made all later steps take 1.4 times as long.
    """

    def __init__(self, num_threads: int, *, name: str) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix=f"latentmas-{name}")
        # torch holds one number for threads that are new to it, and each thread has its own. All of
        # ours start now and take 1; then the number is again what it was.
        num_team_threads = torch.get_num_threads()
        has_started = threading.Barrier(num_threads)
        started = [self._pool.submit(_compute_alone, has_started) for _ in range(num_threads)]
        for future in started:
            future.result()
        torch.set_num_threads(num_team_threads)

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Raises EngineError after ``close``."""
        try:
            return self._pool.submit(function, *args, **kwargs)
        except RuntimeError as error:
            raise EngineError("the engine was closed.") from error

    def close(self, *, waits: bool) -> None:
        """Take nothing more; ``waits``: end what is under way and forget what has not begun."""
        self._pool.shutdown(wait=waits, cancel_futures=waits)


def _compute_alone(has_started: threading.Barrier) -> None:
    torch.get_num_threads()  # the first question of a thread overwrites what was set before
    torch.set_num_threads(1)
    has_started.wait()
