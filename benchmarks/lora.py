"""python -m benchmarks.lora: many adapters on our engine beside PEFT, and beside itself.

Every side lives in a process of its own with the same dtype and threads; rounds interleave them.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from benchmarks.lora_measures import (
    QUICK,
    LoRABench,
    Sizes,
    measure_churn,
    measure_idle,
    measure_load,
    measure_mixed,
    measure_scattered,
    measure_trace,
)
from benchmarks.machine import describe_machine
from benchmarks.measure import Measurement, Missing
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
from benchmarks.workers import Worker, WorkerError

MEASUREMENTS: Mapping[str, Callable[[LoRABench], list[Measurement]]] = MappingProxyType(
    {
        "idle": measure_idle,
        "mixed": measure_mixed,
        "scattered": measure_scattered,
        "trace": measure_trace,
        "churn": measure_churn,
        "load": measure_load,
    }
)


def main(arguments: Sequence[str] | None = None) -> int:
    """0; or 1 if a measurement failed or greedy fp32 answers differ. A missed bar is no failure."""
    options = _parse(arguments)
    sizes = QUICK if options.quick else replace(Sizes(), num_rounds=options.rounds)
    machine = describe_machine()
    with model_to_load(options) as model_name:
        settings = SideSettings(model_name, options.dtype, options.device, options.threads)
        measured = measure_all(settings, sizes, options.only or list(MEASUREMENTS))
    publish("benchmarks.lora", options, machine, measured, num_rounds=sizes.num_rounds)
    return exit_status(measured)


def measure_all(settings: SideSettings, sizes: Sizes, titles: Sequence[str]) -> list[Measurement]:
    """One measurement after the other; one that breaks off does not take the others with it."""
    measured: list[Measurement] = []
    with Worker(
        "benchmarks.adapters:AdapterWriter",
        settings.model_name,
        num_threads=settings.num_threads,
    ) as writer:
        for title in titles:
            say(f"{settings.dtype}: {title}")
            with tempfile.TemporaryDirectory(prefix="latentmas-adapters-") as folder:
                bench = LoRABench(settings, sizes, writer, Path(folder))
                try:
                    measured += with_foreign_cores(
                        lambda title=title, bench=bench: MEASUREMENTS[title](bench),
                        lambda: [writer],
                    )
                except WorkerError as error:
                    measured.append(
                        Missing(title, title, settings.dtype, str(error), is_failure=True)
                    )
    return measured


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lora", description=__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    add_common_options(parser)
    parser.add_argument("--quick", action="store_true", help="1 round, fewer adapters and requests")
    parser.add_argument(
        "--only", choices=list(MEASUREMENTS), action="append", help="may be given several times"
    )
    return parse_with_model(parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
