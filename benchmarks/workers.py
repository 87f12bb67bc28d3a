"""Processes that hold one side of a comparison each and answer calls over a pipe.

A process per side, because the OpenMP teams of two threads in one process slow each other: libgomp
spins less once there are more threads than cores. A worker that waits blocks on its pipe.
"""

import multiprocessing
import os
import traceback
from collections.abc import Iterator
from contextlib import closing, suppress
from importlib import import_module
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, NamedTuple, Self

from benchmarks.machine import process_core_s

CLOSE_TIMEOUT_S = 20.0


class WorkerError(Exception):
    """A side failed, or its process is gone."""


class _Call(NamedTuple):
    method: str
    arguments: dict[str, Any]


class _Answer(NamedTuple):
    value: Any
    failure: str | None


class Worker:
    """``factory`` is "package.module:Class"; its object lives in the process alone.

    It has ``close`` and the methods that are called.
    """

    def __init__(self, factory: str, *arguments: Any, num_threads: int) -> None:
        self.name = factory.rpartition(":")[2]
        # A process reads this when it loads torch, so it must be there before the process is.
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, factory, arguments), name=self.name, daemon=True
        )
        self._process.start()
        theirs.close()
        self._receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, method: str, **arguments: Any) -> Any:
        """What the side's method returns; WorkerError with its traceback if it raises."""
        self._connection.send(_Call(method, arguments))
        return self._receive()

    @property
    def core_s(self) -> float:
        """Seconds that cores have worked for the process."""
        assert self._process.pid is not None, "a worker starts its process when it is made"
        return process_core_s(self._process.pid)

    def close(self) -> None:
        self._connection.close()
        self._process.join(CLOSE_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Any:
        try:
            answer: _Answer = self._connection.recv()
        except EOFError:
            self._process.join(CLOSE_TIMEOUT_S)
            raise WorkerError(
                f"the process of {self.name} ended with exit code {self._process.exitcode}; -9 "
                "means that it was killed, most often for memory."
            ) from None
        if answer.failure is not None:
            raise WorkerError(f"{self.name} failed:\n{answer.failure}")
        return answer.value


def _serve(connection: Connection, factory: str, arguments: tuple[Any, ...]) -> None:
    """The life of a worker: make the side, answer until the other end closes."""
    try:
        side = _make(factory, arguments)
    except Exception:  # noqa: BLE001 - the other process reports it
        connection.send(_Answer(None, traceback.format_exc()))
        return
    with closing(side):
        connection.send(_Answer(None, None))
        for call in _calls(connection):
            connection.send(_answer(side, call))


def _make(factory: str, arguments: tuple[Any, ...]) -> Any:
    module_name, _, class_name = factory.partition(":")
    return getattr(import_module(module_name), class_name)(*arguments)


def _calls(connection: Connection) -> Iterator[_Call]:
    with suppress(EOFError):
        while True:
            yield connection.recv()


def _answer(side: Any, call: _Call) -> _Answer:
    try:
        return _Answer(getattr(side, call.method)(**call.arguments), None)
    except Exception:  # noqa: BLE001 - the other process reports it
        return _Answer(None, traceback.format_exc())
