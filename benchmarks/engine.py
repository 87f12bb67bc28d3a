"""python -m benchmarks.engine: our engine beside its baselines, in one run, as a table and JSON.

Every side lives in a process of its own with the same dtype and threads; rounds interleave them.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.bench import NUM_REQUESTS, Bench
from benchmarks.decoding import measure_one_step, measure_single_mode
from benchmarks.machine import (
    busy_core_s,
    describe_commit,
    describe_machine,
    describe_versions,
)
from benchmarks.measure import Comparison, Measurement, Missing
from benchmarks.protocol import SideSettings
from benchmarks.reasoning import (
    measure_many_requests,
    measure_modes,
    measure_one_request,
)
from benchmarks.shapes import RANDOM_PREFIX, SHAPES, shape_of
from benchmarks.table import table_lines
from benchmarks.workers import Worker, WorkerError
from latentmas_core.config import EngineConfig

DEFAULT_MODEL = EngineConfig.model_fields["model_name"].default
DTYPES = ("float32", "bfloat16")
NUM_PLAIN_REQUESTS_QUICK = 4
ENGINE_SIDE = "benchmarks.engine_side:EngineSide"
TRANSFORMERS_SIDE = "benchmarks.transformers_side:TransformersSide"

MEASUREMENTS: Mapping[str, Callable[[Bench], list[Measurement]]] = MappingProxyType(
    {
        "one-request": measure_one_request,
        "many-requests": measure_many_requests,
        "single-mode": measure_single_mode,
        "one-step": measure_one_step,
        "modes": measure_modes,
    }
)


class Taken(NamedTuple):
    """What one dtype gave."""

    measurements: list[Measurement]
    gpu_name: str | None


def main(arguments: Sequence[str] | None = None) -> int:
    """0; or 1 if a measurement failed or greedy fp32 answers differ. A missed bar is no failure."""
    options = _parse(arguments)
    measured: list[Measurement] = []
    machine = describe_machine()
    with _model_to_load(options) as model_name:
        for dtype in DTYPES if options.dtype == "both" else (options.dtype,):
            settings = SideSettings(
                model_name, dtype, options.device, options.threads, options.prefix_cache
            )
            taken = _measure(settings, options)
            measured += taken.measurements
            machine["gpu"] = taken.gpu_name
    _say_what_was_run(machine, options)
    print(*table_lines(measured), sep="\n")
    if options.json:
        options.json.write_text(json.dumps(_report(options, machine, measured), indent=2) + "\n")
    return _exit_status(measured)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--dtype", choices=[*DTYPES, "both"], default="both")
    parser.add_argument("--threads", type=_positive, default=2, help="of every side (2)")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"embedded, folder, id of the hub, or {RANDOM_PREFIX}{{{','.join(SHAPES)}}}",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=_positive, default=3, help="of every measurement (3)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="1 round, the plain loop on fewer questions, generate_batch with a fitted pool only",
    )
    parser.add_argument(
        "--prefix-cache",
        action="store_true",
        help="let our engine find prompts again; without it every side computes every row",
    )
    parser.add_argument(
        "--only", choices=list(MEASUREMENTS), action="append", help="may be given several times"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    options = parser.parse_args(arguments)
    try:
        shape_of(options.model)
    except LookupError as error:
        parser.error(str(error.args[0]))
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"is {number}; it must be at least 1")
    return number


@contextmanager
def _model_to_load(options: argparse.Namespace) -> Iterator[str]:
    """The name that the sides load; a random model is written first and removed at the end."""
    shape = shape_of(options.model)
    if shape is None:
        yield options.model
        return
    with tempfile.TemporaryDirectory(prefix="latentmas-bench-") as folder:
        _say(f"writing {options.model} to {folder}")
        factory = "benchmarks.models:ModelWriter"
        with Worker(factory, options.device, num_threads=os.cpu_count() or 1) as writer:
            writer.call("write", folder=folder, shape=dict(shape))
        yield folder


def _measure(settings: SideSettings, options: argparse.Namespace) -> Taken:
    """All measurements of one dtype; one that breaks off does not take the others with it."""
    _say(f"{settings.dtype}: loading")
    measured: list[Measurement] = []
    with (
        Worker(ENGINE_SIDE, settings, num_threads=settings.num_threads) as ours,
        Worker(TRANSFORMERS_SIDE, settings, num_threads=settings.num_threads) as transformers,
    ):
        bench = Bench(
            settings,
            ours,
            transformers,
            num_rounds=1 if options.quick else options.rounds,
            num_plain_requests=NUM_PLAIN_REQUESTS_QUICK if options.quick else NUM_REQUESTS,
            has_default_pool=not options.quick,
        )
        gpu_name = transformers.call("device_name")
        for title in options.only or MEASUREMENTS:
            _say(f"{settings.dtype}: {title}")
            try:
                measured += _with_foreign_cores(MEASUREMENTS[title], bench)
            except WorkerError as error:
                measured.append(bench.miss(title, title, str(error), is_failure=True))
    return Taken(measured, gpu_name)


def _with_foreign_cores(
    measure: Callable[[Bench], list[Measurement]], bench: Bench
) -> list[Measurement]:
    """What ``measure`` finds, with the load that other programs made meanwhile."""
    started_s, foreign_s = time.perf_counter(), busy_core_s() - _own_core_s(bench)
    found = measure(bench)
    foreign_s = busy_core_s() - _own_core_s(bench) - foreign_s
    cores = max(foreign_s, 0.0) / (time.perf_counter() - started_s)
    return [
        replace(one, foreign_cores=cores) if isinstance(one, Comparison) else one for one in found
    ]


def _own_core_s(bench: Bench) -> float:
    """Of this process, of workers that ended, and of those that are open."""
    return sum(os.times()[:4]) + bench.ours.core_s + bench.transformers.core_s


def _report(
    options: argparse.Namespace, machine: dict[str, Any], measured: Sequence[Measurement]
) -> dict[str, Any]:
    return {
        "machine": machine,
        "versions": describe_versions(),
        **describe_commit(),
        "command": shlex.join(["python", "-m", "benchmarks.engine", *sys.argv[1:]]),
        "model": options.model,
        "device": options.device,
        "num_threads": options.threads,
        "num_rounds": 1 if options.quick else options.rounds,
        "has_prefix_cache": options.prefix_cache,
        "measurements": [measurement.as_dict() for measurement in measured],
    }


def _say_what_was_run(machine: dict[str, Any], options: argparse.Namespace) -> None:
    versions = describe_versions()
    print(
        f"{options.model} on {machine['gpu'] or machine['cpu']} ({machine['num_cores']} cores), "
        f"{options.threads} threads; torch {versions['torch']}, "
        f"transformers {versions['transformers']}"
    )


def _exit_status(measured: Sequence[Measurement]) -> int:
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
        _say(f"ERROR: {problem}")
    return 1 if problems else 0


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
