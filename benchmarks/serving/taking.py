"""Takes measurements one after the other; one that breaks off does not take the others with it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from benchmarks.measure import Measurement, Missing
from benchmarks.program import say, with_foreign_cores
from benchmarks.serving.served_app import DTYPE
from benchmarks.workers import WorkerError
from latentmas_core.errors import LatentMASError

FAILURES = (RayError, RayServeException, LatentMASError, WorkerError, httpx.HTTPError)


def take_all(
    measurements: Mapping[str, Callable[[], list[Measurement]]], working: Sequence[Any]
) -> list[Measurement]:
    """``working``: all whose work is ours, each with ``core_s``; the rest is what others took."""
    measured: list[Measurement] = []
    for title, measure in measurements.items():
        say(title)
        try:
            measured += with_foreign_cores(measure, lambda: working)
        except FAILURES as error:
            reason = f"{type(error).__name__}: {error}"
            measured.append(Missing(title, title, DTYPE, reason, is_failure=True))
    return measured
