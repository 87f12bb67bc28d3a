"""The few threads that documents are read in."""

import asyncio
import threading
from contextvars import ContextVar

import pytest

from latentmas_core.context.documents.threads import DocumentThreads

_asker: ContextVar[str] = ContextVar("asker", default="nobody")


async def test_what_still_waits_for_a_thread_is_not_begun_when_its_caller_leaves() -> None:
    threads = DocumentThreads(max_threads=1)
    gate, begun = threading.Event(), []
    first = asyncio.create_task(threads.run(gate.wait))
    second = asyncio.create_task(threads.run(begun.append, "second"))
    await asyncio.sleep(0)  # both are handed in
    second.cancel()
    await asyncio.wait([second])
    gate.set()
    assert await first
    await threads.run(begun.append, "third")
    assert begun == ["third"]


async def test_what_is_raised_there_is_raised_here() -> None:
    with pytest.raises(ValueError, match="'x'"):
        await DocumentThreads().run(int, "x")


async def test_work_there_knows_who_asked() -> None:
    _asker.set("Ada")
    assert await DocumentThreads().run(_asker.get) == "Ada"
