"""python -m benchmarks.handoff: memory from one replica into another's blocks, on a real Ray.

The cluster is this program's own, on the loopback address, and ends with it.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from benchmarks.machine import describe_machine
from benchmarks.measure import Measurement
from benchmarks.program import exit_status, publish
from benchmarks.serving.cluster import open_cluster
from benchmarks.serving.handoff_measures import (
    MODEL_NAME,
    MODEL_SHAPE,
    QUICK,
    HandoffBench,
    Sizes,
    measure_calls,
    measure_fused,
    measure_handoff,
)
from benchmarks.serving.options import add_serving_options
from benchmarks.serving.taking import take_all
from benchmarks.workers import Worker

MEASUREMENTS: Mapping[str, Callable[[HandoffBench], list[Measurement]]] = MappingProxyType(
    {"handoff": measure_handoff, "fused": measure_fused, "calls": measure_calls}
)
NUM_CPUS = 4
OBJECT_STORE_BYTES = 2 * 2**30


def main(arguments: Sequence[str] | None = None) -> int:
    """0; or 1 if a measurement failed or what arrives is not what was sent. A missed bar is not."""
    options = _parse(arguments)
    sizes = QUICK if options.quick else replace(Sizes(), num_rounds=options.rounds)
    machine = describe_machine()
    measured = measure_all(sizes, options.threads, options.only or list(MEASUREMENTS))
    publish("benchmarks.handoff", options, machine, measured, num_rounds=sizes.num_rounds)
    return exit_status(measured)


def measure_all(sizes: Sizes, num_threads: int, titles: Sequence[str]) -> list[Measurement]:
    """All measurements with these titles, on one cluster and one model."""
    with (
        tempfile.TemporaryDirectory(prefix="latentmas-handoff-") as folder,
        open_cluster(num_cpus=NUM_CPUS, object_store_bytes=OBJECT_STORE_BYTES) as cluster,
    ):
        with Worker("benchmarks.models:ModelWriter", "cpu", num_threads=num_threads) as writer:
            writer.call("write", folder=folder, shape=MODEL_SHAPE)
        bench = HandoffBench(cluster, folder, num_threads, sizes)
        return take_all(
            {title: lambda title=title: MEASUREMENTS[title](bench) for title in titles}, [cluster]
        )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.handoff", description=__doc__)
    add_serving_options(parser, MEASUREMENTS, num_rounds=Sizes().num_rounds)
    parser.set_defaults(model=MODEL_NAME)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
