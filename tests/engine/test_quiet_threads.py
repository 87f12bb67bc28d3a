"""Threads beside the engine's own: torch gives them no team, and they end as they should."""

import threading
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


def num_tasks() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_all_compute_alone_and_others_as_before(threads: QuietThreads) -> None:
    num_threads = torch.get_num_threads()
    assert num_threads > 1, "otherwise this shows nothing"
    meets = threading.Barrier(3)

    def count() -> int:
        meets.wait()  # so that each of the three is asked
        return torch.get_num_threads()

    assert [f.result() for f in [threads.submit(count) for _ in range(3)]] == [1, 1, 1]
    assert torch.get_num_threads() == num_threads
    others: list[int] = []
    other = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert others == [num_threads]
    threads.close(waits=True)


class Tasks(NamedTuple):
    """Threads of a process: before and after a quiet thread copies, before and while another one
    does."""

    before: int
    after_quiet: int
    before_other: int
    with_other: int


def copy_much() -> None:
    torch.stack([torch.ones(1000, 1000)] * 4).exp().sum()


def count_tasks() -> Tasks:
    torch.set_num_threads(2)  # whatever OMP_NUM_THREADS other tests have left to this process
    threads = QuietThreads(3, name="test")
    before = num_tasks()
    threads.submit(copy_much).result()
    after_quiet = num_tasks()
    threads.close(waits=True)
    before_other = num_tasks()
    other = threading.Thread(target=lambda: (copy_much(), counted.append(num_tasks())))
    counted: list[int] = []
    other.start()
    other.join()
    return Tasks(before, after_quiet, before_other, counted[0])


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts tasks of Linux")
def test_large_operation_starts_no_team() -> None:
    # In a process of its own: in this one threads of other tests may end at any time.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        tasks = process.submit(count_tasks).result()
    assert tasks.after_quiet == tasks.before
    assert tasks.with_other > tasks.before_other + 1, "a thread like any other has a team"


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
