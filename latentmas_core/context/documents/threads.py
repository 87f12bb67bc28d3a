"""The few threads in which documents are read, cut and searched: they cost a processor, and whoever
else runs beside them has to go on."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

# Each that computes takes Python's lock from the event loop for some milliseconds at a time.
MAX_THREADS = 2

P = ParamSpec("P")
T = TypeVar("T")


class DocumentThreads:
    """For any number of event loops. What waits for a thread when its caller leaves is not begun;
    what is under way ends."""

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        self._pool = ThreadPoolExecutor(max_threads, thread_name_prefix="latentmas-documents")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``function`` returns or raises, when a thread was free for it."""
        call = partial(copy_context().run, function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)
