"""python -m benchmarks.serve_load: a service beside the same engine in process, and under load.

The cluster is this program's own, on the loopback address, and ends with it.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

from benchmarks.machine import describe_machine
from benchmarks.measure import Measurement
from benchmarks.program import (
    DEFAULT_MODEL,
    exit_status,
    model_to_load,
    parse_with_model,
    publish,
)
from benchmarks.serving.cancel_measures import measure_cancel
from benchmarks.serving.clients import LoadRun
from benchmarks.serving.cluster import open_cluster
from benchmarks.serving.load_measures import (
    QUICK,
    LoadBench,
    Sizes,
    measure_load,
    measure_overhead,
)
from benchmarks.serving.load_table import load_lines
from benchmarks.serving.options import add_serving_options
from benchmarks.serving.taking import take_all
from benchmarks.shapes import RANDOM_PREFIX, SHAPES

MEASUREMENTS: Mapping[str, Callable[[LoadBench], list[Measurement]]] = MappingProxyType(
    {"overhead": measure_overhead, "load": measure_load, "cancel": measure_cancel}
)
NUM_CPUS_PER_THREAD = 4
OBJECT_STORE_BYTES = 2**30


class Taken(NamedTuple):
    """``runs``: what clients saw under load, by mode and number."""

    measurements: list[Measurement]
    runs: list[LoadRun]


def main(arguments: Sequence[str] | None = None) -> int:
    """0; or 1 if a request failed or answers differ from those in process. A missed bar is not."""
    options = _parse(arguments)
    sizes = QUICK if options.quick else replace(Sizes(), num_rounds=options.rounds)
    machine = describe_machine()
    with model_to_load(options) as model_name:
        taken = measure_all(model_name, sizes, options.threads, options.only or list(MEASUREMENTS))
    publish(
        "benchmarks.serve_load",
        options,
        machine,
        taken.measurements,
        num_rounds=sizes.num_rounds,
        load=[run.as_dict() for run in taken.runs],
    )
    print("", *load_lines(taken.runs), sep="\n")
    return exit_status(taken.measurements)


def measure_all(model_name: str, sizes: Sizes, num_threads: int, titles: Sequence[str]) -> Taken:
    """All measurements with these titles, on one cluster, and their raw runs."""
    num_cpus = NUM_CPUS_PER_THREAD * num_threads
    with open_cluster(num_cpus=num_cpus, object_store_bytes=OBJECT_STORE_BYTES) as cluster:
        bench = LoadBench(cluster, model_name, num_threads, sizes)
        measured = take_all(
            {title: lambda title=title: MEASUREMENTS[title](bench) for title in titles}, [cluster]
        )
    return Taken(measured, bench.runs)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_load", description=__doc__)
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"embedded, folder, id of the hub, or {RANDOM_PREFIX}{{{','.join(SHAPES)}}}",
    )
    add_serving_options(parser, MEASUREMENTS, num_rounds=Sizes().num_rounds)
    return parse_with_model(parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
