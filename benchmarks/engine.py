"""python -m benchmarks.engine: our engine beside its baselines, in one run, as a table and JSON.

Every side lives in a process of its own with the same dtype and threads; rounds interleave them.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from benchmarks.bench import NUM_REQUESTS, Bench
from benchmarks.decoding import measure_one_step, measure_single_mode
from benchmarks.machine import (
    describe_machine,
)
from benchmarks.measure import Measurement
from benchmarks.program import (
    add_common_options,
    exit_status,
    model_to_load,
    parse_with_model,
    publish,
    say,
    with_foreign_cores,
)
from benchmarks.protocol import SideSettings
from benchmarks.reasoning import (
    measure_many_requests,
    measure_modes,
    measure_one_request,
)
from benchmarks.workers import Worker, WorkerError

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
    with model_to_load(options) as model_name:
        for dtype in DTYPES if options.dtype == "both" else (options.dtype,):
            settings = SideSettings(
                model_name, dtype, options.device, options.threads, options.prefix_cache
            )
            taken = _measure(settings, options)
            measured += taken.measurements
            machine["gpu"] = taken.gpu_name
    publish(
        "benchmarks.engine",
        options,
        machine,
        measured,
        num_rounds=1 if options.quick else options.rounds,
        has_prefix_cache=options.prefix_cache,
    )
    return exit_status(measured)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--dtype", choices=[*DTYPES, "both"], default="both")
    add_common_options(parser)
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
    return parse_with_model(parser, arguments)


def _measure(settings: SideSettings, options: argparse.Namespace) -> Taken:
    """All measurements of one dtype; one that breaks off does not take the others with it."""
    say(f"{settings.dtype}: loading")
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
            say(f"{settings.dtype}: {title}")
            try:
                measured += with_foreign_cores(
                    lambda title=title: MEASUREMENTS[title](bench), lambda: (ours, transformers)
                )
            except WorkerError as error:
                measured.append(bench.miss(title, title, str(error), is_failure=True))
    return Taken(measured, gpu_name)


if __name__ == "__main__":
    sys.exit(main())
