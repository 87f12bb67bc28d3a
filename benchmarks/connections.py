"""python -m benchmarks.connections: many clients at a time at a service, and whether it lives.

Clients ask short questions, whole and streamed, of both APIs; a fifth of the requests hang up in
the middle of their stream. Meanwhile another process asks for /healthz. The cluster is this
program's own, on the loopback address, and ends with it.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.measure import Measurement, percentile
from benchmarks.program import (
    DEFAULT_MODEL,
    exit_status,
    model_to_load,
    parse_with_model,
    positive,
    publish,
    say,
    with_foreign_cores,
)
from benchmarks.serving.cluster import ServeCluster, open_cluster
from benchmarks.serving.connection_measures import (
    QUICK,
    Crowded,
    Sizes,
    crowd_on,
    measured,
)
from benchmarks.shapes import RANDOM_PREFIX, SHAPES

NUM_CPUS_PER_THREAD = 4
OBJECT_STORE_BYTES = 2**29  # as make serve has it


def main(arguments: Sequence[str] | None = None) -> int:
    """0; or 1 if an answer was none that may come, or something was left behind. A missed bar is
    not."""
    options = _parse(arguments)
    machine = describe_machine()
    sizes = _sizes(options)
    say(f"{sizes.num_clients} clients, {sizes.warm_up_s:g} s to warm up, {sizes.seconds:g} s")
    num_cpus = NUM_CPUS_PER_THREAD * options.threads
    with (
        model_to_load(options) as model_name,
        open_cluster(num_cpus=num_cpus, object_store_bytes=OBJECT_STORE_BYTES) as cluster,
    ):
        crowded, measurements = _measure(cluster, model_name, options.threads, sizes)
    publish(
        "benchmarks.connections",
        options,
        machine,
        measurements,
        num_clients=sizes.num_clients,
        seconds=sizes.seconds,
        crowd=crowded.as_dict(),
    )
    print("", *crowd_lines(crowded), sep="\n")
    return exit_status(measurements)


def _measure(
    cluster: ServeCluster, model_name: str, num_threads: int, sizes: Sizes
) -> tuple[Crowded, list[Measurement]]:
    seen: list[Crowded] = []

    def measure() -> list[Measurement]:
        seen.append(crowd_on(cluster, model_name, num_threads, sizes))
        return list(measured(seen[0], sizes))

    measurements = with_foreign_cores(measure, lambda: [cluster])
    return seen[0], measurements


def crowd_lines(crowded: Crowded) -> Iterator[str]:
    """Requests by kind and status, and how long the answered ones took."""
    for kind, statuses in crowded.run.num_by_kind.items():
        yield f"{kind:<16}" + "  ".join(f"{status}: {num}" for status, num in statuses.items())
    answered = crowded.run.answered_s
    yield (
        f"{len(answered)} read to their end, p50 {percentile(answered, 50):.2f} s, p99 "
        f"{percentile(answered, 99):.2f} s; all done after {crowded.run.duration_s:.1f} s"
    )
    yield f"problems: {crowded.run.problems or 'none'}"
    yield f"left over: {dict(crowded.left_over) or 'nothing'}"


def _sizes(options: argparse.Namespace) -> Sizes:
    sizes = QUICK if options.quick else Sizes()
    asked = {"num_clients": options.clients, "seconds": options.seconds}
    return replace(sizes, **{name: value for name, value in asked.items() if value is not None})


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.connections", description=__doc__)
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"embedded, folder, id of the hub, or {RANDOM_PREFIX}{{{','.join(SHAPES)}}}",
    )
    parser.add_argument("--threads", type=positive, default=1, help="of every engine (1)")
    parser.add_argument("--clients", type=positive, help=f"at a time ({Sizes().num_clients})")
    parser.add_argument("--seconds", type=positive, help=f"of asking ({Sizes().seconds:g})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK.num_clients} clients for {QUICK.seconds:g} s, unless told otherwise",
    )
    parser.set_defaults(device="cpu")
    return parse_with_model(parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
