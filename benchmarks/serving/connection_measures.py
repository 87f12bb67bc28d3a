"""What many connections at a time do to a service: to its answers, its liveness, what it keeps."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx

from benchmarks.measure import Bar, Comparison, Figures, Measurement, Missing, percentile
from benchmarks.serving.cluster import ServeCluster
from benchmarks.serving.crowd import PATIENCE_S, CrowdRun, run_crowd
from benchmarks.serving.footprint import Footprint, footprints, serving_processes
from benchmarks.serving.prober import Probe
from benchmarks.serving.served_app import DTYPE, app_args
from benchmarks.workers import Worker
from deployments.app import build_app

PROBER = "benchmarks.serving.prober:Prober"
PROBE_PERIOD_S = 0.1
MAX_PROBE_S = 0.2
MAX_GROWTH = 1.1
WITHOUT_POOL = ("ProxyActor ", "Ingress ")
MAX_IDLE_WAIT_S = 60.0
POLL_S = 0.1


@dataclass(frozen=True)
class Sizes:
    """The same crowd asks for ``warm_up_s`` first; what it leaves behind is no leak yet."""

    num_clients: int = 200
    seconds: float = 60.0
    warm_up_s: float = 5.0
    quiet_s: float = 5.0


QUICK = Sizes(num_clients=40, seconds=10.0, warm_up_s=1.0, quiet_s=2.0)


class Crowded(NamedTuple):
    """What was seen from outside, and what the service holds once all have gone."""

    run: CrowdRun
    quiet: Sequence[Probe]
    probes: Sequence[Probe]
    left_over: Mapping[str, int]
    before: Mapping[str, Footprint]
    after: Mapping[str, Footprint]

    def as_dict(self) -> dict[str, Any]:
        return {
            "duration_s": self.run.duration_s,
            "num_by_kind": self.run.num_by_kind,
            "problems": self.run.problems,
            "answered_s": self.run.answered_s,
            "left_over": dict(self.left_over),
            "probes": [probe._asdict() for probe in self.probes],
            "before": {name: one._asdict() for name, one in self.before.items()},
            "after": {name: one._asdict() for name, one in self.after.items()},
        }


def crowd_on(cluster: ServeCluster, model_name: str, num_threads: int, sizes: Sizes) -> Crowded:
    """Hosts the application of serve_config.yaml, and lets the crowd at it."""
    application = build_app(app_args(model_name, num_threads))
    with cluster.hosting(application, "crowded", route_prefix="/"):
        return crowd_at(cluster.url, sizes)


def crowd_at(url: str, sizes: Sizes) -> Crowded:
    """Lets the crowd at a service whose processes are below this one, twice."""
    with (
        Worker(PROBER, f"{url}/healthz", PROBE_PERIOD_S, num_threads=1) as prober,
        httpx.Client(base_url=url, timeout=PATIENCE_S) as http,
    ):
        run_crowd(url, num_clients=sizes.num_clients, seconds=sizes.warm_up_s)
        left_over_of(http)
        processes = serving_processes()
        before = footprints(processes)
        prober.call("begin", seconds=sizes.quiet_s)
        quiet = prober.call("finish")
        prober.call("begin", seconds=sizes.seconds)
        run = run_crowd(url, num_clients=sizes.num_clients, seconds=sizes.seconds)
        probes = prober.call("finish")
        left_over = left_over_of(http)
        return Crowded(run, quiet, probes, left_over, before, footprints(processes))


def left_over_of(http: httpx.Client) -> dict[str, int]:
    """What the service still holds, without what is nothing, as soon as that is nothing at all."""
    deadline = time.monotonic() + MAX_IDLE_WAIT_S
    while left := held_in(http.get("/v1/stats").raise_for_status().json()):
        if time.monotonic() > deadline:
            return left
        time.sleep(POLL_S)
    return {}


def held_in(stats: Mapping[str, Any]) -> dict[str, int]:
    """What must not be there while nobody asks anything but ``GET /v1/stats`` itself."""
    replicas = [replica for group in stats["groups"].values() for replica in group]
    counts = {
        name: sum(replica[name] for replica in replicas)
        for name in ("num_running", "num_waiting", "num_memories")
    }
    counts["num_used_blocks"] = sum(
        replica["num_used_blocks"] - replica["adapters"]["num_blocks"] for replica in replicas
    )
    counts |= {name: stats["transfer"][name] for name in ("num_bytes", "num_parcels", "num_runs")}
    counts["num_requests"] = stats["requests"]["num_ongoing"] - 1
    return {name: count for name, count in counts.items() if count}


def measured(crowded: Crowded, sizes: Sizes) -> Iterator[Measurement]:
    """The crowd as measurements; what went wrong comes first."""
    what = f"{sizes.num_clients} clients for {sizes.seconds:g} s"
    problems = [f"{count} x {problem}" for problem, count in crowded.run.problems.items()]
    problems += [f"/healthz: {probe.problem}" for probe in crowded.probes if probe.problem]
    problems += [f"{name} is {count} afterwards" for name, count in crowded.left_over.items()]
    problems += [f"{name} has ended" for name in crowded.before if name not in crowded.after]
    if problems:
        yield Missing("answers", what, DTYPE, "; ".join(problems), is_failure=True)
    yield _liveness(crowded, what)
    yield from _growth(crowded)


def _liveness(crowded: Crowded, what: str) -> Comparison:
    durations = [probe.duration_s for probe in crowded.probes]
    quiet = [probe.duration_s for probe in crowded.quiet]
    return Comparison(
        "healthz_p99",
        f"/healthz, p99, {what}",
        DTYPE,
        "ms",
        ours=Figures("under load", [1e3 * percentile(durations, 99)]),
        baseline=Figures("the bar", [1e3 * MAX_PROBE_S]),
        bar=Bar("<=", 1.0),
        note=f"{len(durations)} probes, one every {1e3 * PROBE_PERIOD_S:g} ms: p50 "
        f"{1e3 * percentile(durations, 50):.1f} ms, max {1e3 * max(durations):.1f} ms; while "
        f"nobody asked p50 {1e3 * percentile(quiet, 50):.1f} ms, p99 "
        f"{1e3 * percentile(quiet, 99):.1f} ms",
    )


def _growth(crowded: Crowded) -> Iterator[Comparison]:
    for name, after in crowded.after.items():
        before = crowded.before[name]
        yield _grown(name, "MB", after.own_bytes / 1e6, before.own_bytes / 1e6)
        yield _grown(name, "open files", after.num_files, before.num_files)


def _grown(name: str, unit: str, after: float, before: float) -> Comparison:
    # The memory of an engine's KV pool is taken as it is used for the first time: no bar for that.
    has_pool = not name.startswith(WITHOUT_POOL)
    return Comparison(
        f"growth {name} {unit}",
        name,
        DTYPE,
        unit,
        ours=Figures("afterwards", [after]),
        baseline=Figures("before, warmed up", [before]),
        bar=None if has_pool and unit == "MB" else Bar("<=", MAX_GROWTH),
    )
