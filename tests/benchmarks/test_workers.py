"""Sides in processes of their own: they answer, fail and vanish in ways that are told."""

from collections.abc import Iterator

import pytest

from benchmarks.workers import Worker, WorkerError

FACTORY = "tests.benchmarks.sides:EchoSide"


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # put back what the worker sets
    with Worker(FACTORY, "Hello", num_threads=3) as worker:
        yield worker


def test_a_side_answers_calls_with_its_number_of_threads(worker: Worker) -> None:
    assert worker.call("greet", name="Ada") == "Hello Ada"
    assert worker.call("num_threads") == "3"


def test_a_side_that_raises_is_reported_and_answers_the_next_call(worker: Worker) -> None:
    with pytest.raises(WorkerError, match=r"EchoSide failed:(.|\n)*out of order"):
        worker.call("fail")
    assert worker.call("greet", name="Bob") == "Hello Bob"


def test_a_process_that_vanishes_is_reported_with_its_exit_code(worker: Worker) -> None:
    with pytest.raises(WorkerError, match="exit code 3"):
        worker.call("vanish")


def test_a_side_that_cannot_be_made_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(WorkerError, match="nothing to say"):
        Worker(FACTORY, "", num_threads=1)
