"""Threads beside the engine's own: torch gives them no team, and they end as they should."""

import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from latentmas_core.engine.quiet_threads import QuietThreads
from latentmas_core.errors import EngineError


@pytest.fixture
def threads() -> QuietThreads:
    return QuietThreads(3, name="test")


def tasks() -> set[str]:
    """Ids, for a thread that was joined may be listed a little longer."""
    return {path.name for path in Path("/proc/self/task").iterdir()}


@pytest.fixture
def two_threads() -> Iterator[int]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(num_threads)


def test_all_compute_alone_and_others_as_before(threads: QuietThreads, two_threads: int) -> None:
    meets = threading.Barrier(3)

    def count() -> int:
        meets.wait()  # so that each of the three is asked
        return torch.get_num_threads()

    assert [f.result() for f in [threads.submit(count) for _ in range(3)]] == [1, 1, 1]
    assert torch.get_num_threads() == two_threads
    others: list[int] = []
    other = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert others == [two_threads]
    threads.close(waits=True)


class NewTasks(NamedTuple):
    """How many threads appeared when a quiet thread copied, and when another one did."""

    of_quiet: int
    of_other: int


def copy_much() -> None:
    torch.stack([torch.ones(1000, 1000)] * 4).exp().sum()


def count_new_tasks() -> NewTasks:
    torch.set_num_threads(2)  # whatever OMP_NUM_THREADS other tests have left to this process
    threads = QuietThreads(3, name="test")
    before = tasks()
    threads.submit(copy_much).result()
    of_quiet = tasks() - before
    threads.close(waits=True)
    before = tasks()
    of_other: list[set[str]] = []
    other = threading.Thread(target=lambda: (copy_much(), of_other.append(tasks() - before)))
    other.start()
    other.join()
    return NewTasks(len(of_quiet), len(of_other[0]))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists tasks of Linux")
def test_large_operation_starts_no_team() -> None:
    # In a process of its own: in this one threads of other tests may begin at any time.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        new_tasks = process.submit(count_new_tasks).result()
    assert new_tasks == NewTasks(of_quiet=0, of_other=2), "the other one and its team"


def test_closed_threads_take_nothing_more(threads: QuietThreads) -> None:
    threads.close(waits=True)
    with pytest.raises(EngineError, match="closed"):
        threads.submit(int)


def test_closing_without_waiting_lets_what_was_submitted_end(threads: QuietThreads) -> None:
    may_end = threading.Event()
    futures = [threads.submit(may_end.wait) for _ in range(5)]
    threads.close(waits=False)
    may_end.set()
    assert all(future.result() for future in futures)


def test_error_belongs_to_whoever_waits(threads: QuietThreads) -> None:
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 // 0).result()
    assert threads.submit(lambda: 7).result() == 7
    threads.close(waits=True)
