"""Runs the programs, each in a process of its own and never two at once."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from benchmarks.machine import ROOT, describe_commit, describe_machine, describe_versions
from benchmarks.program import say
from benchmarks.suite.parts import Part
from benchmarks.suite.results import LEFT_OUT, Commit, Result, ResultsFolder

# From an interrupt until a program has taken its cluster down.
GRACE_S = 20.0
MAX_FAILURE_CHARS = 300
LOCK = Path(tempfile.gettempdir()) / f"latentmas-bench-{os.getuid()}.lock"


class BusyError(Exception):
    """Something is being measured on this machine already."""


class _Ended(NamedTuple):
    """``failure`` is None for a program that ended well."""

    failure: str | None
    duration_s: float


def current_commit() -> Commit:
    """That of the working tree."""
    return Commit(**describe_commit())


def run_parts(
    parts: Iterable[Part],
    folder: ResultsFolder,
    *,
    has_to_run: bool = False,
    limit_s: float = float("inf"),
) -> Iterator[Result]:
    """One result after the other, each stored before it is told.

    What was done for this commit is not run again unless ``has_to_run``. ``limit_s`` is for all
    together: what it leaves no time for is a failure.
    """
    ends_at = time.monotonic() + limit_s
    with _alone() as lock:
        for part in parts:
            kept = folder.find(part.name)
            if kept is not None and not has_to_run and kept.is_of(part, current_commit()):
                say(f"{part.name}: kept from {kept.at}")
                yield kept
                continue
            left_s = ends_at - time.monotonic()
            result = _run(part, min(part.time_limit_s, left_s), lock)
            folder.store(result)
            yield result


@contextmanager
def _alone() -> Iterator[IO[str]]:
    """The lock is handed to the programs, so that it outlives a suite that is killed."""
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                "another suite, or a program that a killed one left behind, is still measuring "
                "on this machine. Wait until it has ended."
            ) from None
        yield lock


def _run(part: Part, limit_s: float, lock: IO[str]) -> Result:
    say(f"{part.name}: {part.command}")
    at, machine = current_commit(), describe_machine()
    with tempfile.TemporaryDirectory(prefix="latentmas-suite-") as folder:
        file = Path(folder) / "report.json"
        ended = _run_program(part, file, limit_s, lock)
        report = json.loads(file.read_text()) if file.exists() else None
    failure = ended.failure
    if failure is None and current_commit() != at:
        failure = f"files changed while it ran, from {at} to {current_commit()}"
    return Result(
        part=part.name,
        command=part.command,
        at=at,
        machine=machine if report is None else report["machine"],
        versions=describe_versions(),
        duration_s=round(ended.duration_s, 1),
        failure=failure,
        report=None if report is None else _small(report),
    )


def _small(report: dict[str, Any]) -> dict[str, Any]:
    """Without what the result says by itself, and without what is long."""
    said = ("machine", "versions", "commit", "is_modified", "command", *LEFT_OUT)
    small = {name: value for name, value in report.items() if name not in said}
    for one in small["measurements"]:
        if "reason" in one:
            one["reason"] = last_words(one["reason"].splitlines())
    return small


def _run_program(part: Part, file: Path, limit_s: float, lock: IO[str]) -> _Ended:
    if limit_s <= 0:
        return _Ended("not begun: the time for the whole run was used up", 0.0)
    started_s = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", part.module, *part.arguments, "--json", str(file)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        pass_fds=[lock.fileno()],
    )
    errors: deque[str] = deque(maxlen=100)
    listener = threading.Thread(target=_listen, args=(process, errors), daemon=True)
    listener.start()
    try:
        status = process.wait(limit_s)
        failure = None if status == 0 else f"exit status {status}"
    except subprocess.TimeoutExpired:
        failure = f"ended after the {limit_s:.0f} s that it had"
    finally:
        _end(process)
        listener.join(GRACE_S)
    if failure is not None and (last := last_words(errors)):
        failure += f": {last}"
    return _Ended(failure, time.monotonic() - started_s)


def _end(process: subprocess.Popen[str]) -> None:
    """With all that it started, should it still run: first by an interrupt, as from a keyboard."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _listen(process: subprocess.Popen[str], lines: deque[str]) -> None:
    assert process.stderr is not None, "it is a pipe"
    with process.stderr:
        for line in process.stderr:
            sys.stderr.write(line)
            lines.append(line)


def last_words(lines: Iterable[str]) -> str:
    """The last line of an error, without folders of this machine."""
    said = [line.strip() for line in lines if line.strip()]
    last = said[-1] if said else ""
    return last.replace(str(ROOT), ".").replace(str(Path.home()), "~")[:MAX_FAILURE_CHARS]
