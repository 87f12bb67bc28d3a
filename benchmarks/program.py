"""What the command lines of all benchmarks have in common: options, reports, the exit status."""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from benchmarks.machine import busy_core_s, describe_commit, describe_versions
from benchmarks.measure import Comparison, Measurement, Missing
from benchmarks.shapes import RANDOM_PREFIX, SHAPES, shape_of
from benchmarks.table import table_lines
from benchmarks.workers import Worker
from latentmas_core.config import EngineConfig

DEFAULT_MODEL = EngineConfig.model_fields["model_name"].default


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Which model, on what, how often."""
    parser.add_argument("--threads", type=positive, default=2, help="of every side (2)")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"embedded, folder, id of the hub, or {RANDOM_PREFIX}{{{','.join(SHAPES)}}}",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=positive, default=3, help="of every measurement (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")


def parse_with_model(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """The options; ends the program for a random model of an unknown shape."""
    options = parser.parse_args(arguments)
    try:
        shape_of(options.model)
    except LookupError as error:
        parser.error(str(error.args[0]))
    return options


def positive(text: str) -> int:
    """An integer of the command line that is 1 at least."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"is {number}; it must be at least 1")
    return number


@contextmanager
def model_to_load(options: argparse.Namespace) -> Iterator[str]:
    """The name that the sides load; a random model is written first and removed at the end."""
    shape = shape_of(options.model)
    if shape is None:
        yield options.model
        return
    with tempfile.TemporaryDirectory(prefix="latentmas-bench-") as folder:
        say(f"writing {options.model} to {folder}")
        factory = "benchmarks.models:ModelWriter"
        with Worker(factory, options.device, num_threads=os.cpu_count() or 1) as writer:
            writer.call("write", folder=folder, shape=dict(shape))
        yield folder


class Working(Protocol):
    """Processes of ours, with the seconds that cores have worked for them."""

    @property
    def core_s(self) -> float: ...


def with_foreign_cores(
    measure: Callable[[], list[Measurement]], workers: Callable[[], Sequence[Working]]
) -> list[Measurement]:
    """What ``measure`` finds, with the load that other programs made meanwhile."""
    started_s, foreign_s = time.perf_counter(), busy_core_s() - _own_core_s(workers())
    found = measure()
    foreign_s = busy_core_s() - _own_core_s(workers()) - foreign_s
    cores = max(foreign_s, 0.0) / (time.perf_counter() - started_s)
    return [
        replace(one, foreign_cores=cores) if isinstance(one, Comparison) else one for one in found
    ]


def _own_core_s(workers: Sequence[Working]) -> float:
    """Of this process, of workers that ended, and of those that are open."""
    return sum(os.times()[:4]) + sum(worker.core_s for worker in workers)


def publish(
    program: str,
    options: argparse.Namespace,
    machine: dict[str, Any],
    measured: Sequence[Measurement],
    **more: Any,
) -> None:
    """Print the table; write everything as JSON if that is asked for."""
    _say_what_was_run(machine, options)
    print(*table_lines(measured), sep="\n")
    if options.json:
        report = {
            "machine": machine,
            "versions": describe_versions(),
            **describe_commit(),
            "command": shlex.join(["python", "-m", program, *sys.argv[1:]]),
            "model": options.model,
            "device": options.device,
            "num_threads": options.threads,
            **more,
            "measurements": [measurement.as_dict() for measurement in measured],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _say_what_was_run(machine: dict[str, Any], options: argparse.Namespace) -> None:
    versions = describe_versions()
    print(
        f"{options.model} on {machine['gpu'] or machine['cpu']} ({machine['num_cores']} cores), "
        f"{options.threads} threads; torch {versions['torch']}, "
        f"transformers {versions['transformers']}"
    )


def exit_status(measured: Sequence[Measurement]) -> int:
    """Say loudly what makes the run worthless."""
    problems = [
        f"{measurement.name} failed: {measurement.reason}"
        for measurement in measured
        if isinstance(measurement, Missing) and measurement.is_failure
    ]
    problems += [
        f"{measurement.name}: {measurement.baseline.side} and ours disagree in fp32, "
        f"{measurement.agreement.first_difference}"
        for measurement in measured
        if isinstance(measurement, Comparison) and measurement.is_wrong
    ]
    for problem in problems:
        say(f"ERROR: {problem}")
    return 1 if problems else 0


def say(message: str) -> None:
    """A line about progress; figures go to standard output."""
    print(message, file=sys.stderr, flush=True)
