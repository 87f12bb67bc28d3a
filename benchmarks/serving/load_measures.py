"""What is measured of a service: one client beside the same in process, and many clients."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks.measure import (
    Agreement,
    Bar,
    Comparison,
    Figures,
    Measurement,
    Missing,
    interleave,
)
from benchmarks.questions import NUM_QUESTIONS, questions
from benchmarks.serving.clients import Answered, LoadRun, ServedSide, run_load
from benchmarks.serving.cluster import REQUEST_TIMEOUT_S, ServeCluster
from benchmarks.serving.served_app import DTYPE, app_args
from benchmarks.workers import Worker
from deployments.app import build_app
from deployments.args import AppArgs

LOCAL = "benchmarks.serving.local_side:LocalSide"
MODES = ("latent", "text", "single")
PEERS = ("text", "single")
MAX_OVERHEAD = 1.12
MIN_LATENCY_S = 2.0


@dataclass(frozen=True)
class Sizes:
    """How much is measured. ``num_requests``: of each client, by the number of clients."""

    num_rounds: int = 5
    latent_steps: int = 10
    num_tokens: int = 48
    num_requests: Mapping[int, int] = field(default_factory=lambda: {1: 8, 8: 3, 32: 2})
    num_load_tokens: int = 32
    idle_s: float = 10.0


QUICK = Sizes(num_rounds=2, num_requests={1: 2, 8: 1, 32: 1}, num_load_tokens=16, idle_s=3.0)


@dataclass(frozen=True)
class LoadBench:
    """What all measurements are made with. ``runs`` collects what clients saw under load."""

    cluster: ServeCluster
    model_name: str
    num_threads: int
    sizes: Sizes
    runs: list[LoadRun] = field(default_factory=list)

    def args(self, *, is_fused: bool = False) -> AppArgs:
        return app_args(self.model_name, self.num_threads, is_fused=is_fused)

    def fields(self, question: str, num_tokens: int) -> dict[str, Any]:
        """A request whose length does not depend on the model's words."""
        return {
            "question": question,
            "pipeline": "hierarchical",
            "latent_steps": self.sizes.latent_steps,
            "max_tokens": num_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
        }

    def compare(self, name: str, what: str, unit: str, **fields: Any) -> Comparison:
        return Comparison(name, what, DTYPE, unit, **fields)


@dataclass(frozen=True)
class _Asked:
    """An answer, and the seconds that cores worked for it."""

    answered: Answered
    core_s: float


class _Overhead(NamedTuple):
    """``idle_cores``: how many cores Ray keeps busy while nobody asks."""

    asked: Mapping[str, Sequence[_Asked]]
    idle_cores: float


def measure_overhead(bench: LoadBench) -> list[Measurement]:
    """One client: over HTTP from two groups and from one, and in process with the same engine."""
    args = bench.args()
    with ExitStack() as stack:
        urls = {}
        for name, is_fused in (("two", False), ("one", True)):
            application = build_app(bench.args(is_fused=is_fused))
            prefix = f"/{name}"
            stack.enter_context(bench.cluster.hosting(application, name, route_prefix=prefix))
            urls[name] = bench.cluster.url + prefix
        engine = args.engine_of(args.groups[0])
        local = stack.enter_context(
            Worker(LOCAL, engine, args.latent_steps, num_threads=bench.num_threads)
        )
        asked = _ask_in_turn(bench, urls, local)
        idle_cores = _idle_cores(bench)
    return list(_overheads(bench, _Overhead(asked, idle_cores)))


def _idle_cores(bench: LoadBench) -> float:
    before_s = bench.cluster.core_s
    time.sleep(bench.sizes.idle_s)
    return (bench.cluster.core_s - before_s) / bench.sizes.idle_s


def _ask_in_turn(
    bench: LoadBench, urls: Mapping[str, str], local: Worker
) -> dict[str, list[_Asked]]:
    def fields(round_index: int) -> dict[str, Any]:
        (question,) = questions(1, round_index=round_index)
        return bench.fields(question, bench.sizes.num_tokens)

    def ask_local(round_index: int) -> _Asked:
        before_s = local.core_s
        answered = local.call("ask", fields=fields(round_index))
        return _Asked(answered, local.core_s - before_s)

    def ask_served(side: ServedSide, round_index: int) -> _Asked:
        before_s = bench.cluster.core_s
        answered = side.ask(fields(round_index))
        return _Asked(answered, bench.cluster.core_s - before_s)

    served = {name: ServedSide(url, timeout_s=REQUEST_TIMEOUT_S) for name, url in urls.items()}
    try:
        return interleave(
            bench.sizes.num_rounds,
            {"local": ask_local}
            | {
                name: lambda index, side=side: ask_served(side, index)
                for name, side in served.items()
            },
        )
    finally:
        for side in served.values():
            side.close()


def _overheads(bench: LoadBench, found: _Overhead) -> Iterator[Measurement]:
    asked, local = found.asked, found.asked["local"]
    in_process = Figures("in process", [one.answered.duration_s for one in local])
    sizes = bench.sizes
    for name, title in (("two", "two groups"), ("one", "one group")):
        served = asked[name]
        transfer = served[-1].answered.result["transfer"]
        yield bench.compare(
            f"served_{name}",
            f"hierarchical, {title}",
            "s",
            ours=Figures("over HTTP", [one.answered.duration_s for one in served]),
            baseline=in_process,
            bar=Bar("<=", MAX_OVERHEAD),
            agreement=_agreement(served, local),
            note=f"3 x {sizes.latent_steps} latent steps, {sizes.num_tokens} tokens, one client; "
            f"{bench.num_threads} thread(s) per engine; {transfer['hops']} hop(s), "
            f"{transfer['bytes'] / 1e6:.1f} MB put; {_median_inside_ms(served):.0f} ms of the "
            "latency by the ingress's own clock" + _too_short(in_process),
        )
        yield bench.compare(
            f"served_{name}_cores",
            f"core seconds of it, {title}",
            "s",
            ours=Figures("all of Ray", [one.core_s for one in served]),
            baseline=Figures("in process", [one.core_s for one in local]),
            note=f"Ray took {found.idle_cores:.2f} cores while nobody asked; what a group burns "
            "that waits would be in it",
        )


def _agreement(served: Sequence[_Asked], local: Sequence[_Asked]) -> Agreement:
    pairs = [(_text(one), _text(other)) for one, other in zip(served, local, strict=True)]
    different = [
        f"{ours!r} over HTTP, {theirs!r} in process" for ours, theirs in pairs if ours != theirs
    ]
    return Agreement(len(pairs), len(pairs) - len(different), next(iter(different), None))


def _text(asked: _Asked) -> str:
    text: str = asked.answered.result["final_answer"]
    return text


def _median_inside_ms(asked: Sequence[_Asked]) -> float:
    return Figures("", [one.answered.result["latency_ms"] for one in asked]).median


def _too_short(in_process: Figures) -> str:
    if in_process.median >= MIN_LATENCY_S:
        return ""
    return f"; TOO SHORT for the bar, which is for {MIN_LATENCY_S:g} s and more"


def measure_load(bench: LoadBench) -> list[Measurement]:
    """Closed loops of clients on two groups: the same requests in each mode."""
    with bench.cluster.hosting(build_app(bench.args()), "loaded", route_prefix="/loaded"):
        url = f"{bench.cluster.url}/loaded"
        for mode in MODES:  # so that no mode pays for what is computed once
            _load(bench, url, mode, num_clients=1, num_requests=1, first_round=0)
        measured: list[Measurement] = []
        for index, (num_clients, num_requests) in enumerate(bench.sizes.num_requests.items()):
            runs = {
                mode: _load(
                    bench, url, mode, num_clients, num_requests, first_round=1 + 100 * index
                )
                for mode in MODES[:: -1 if index % 2 else 1]
            }
            bench.runs.extend(runs[mode] for mode in MODES)
            measured += _beside_each_other(bench, num_clients, runs)
    return measured


def _load(
    bench: LoadBench,
    url: str,
    mode: str,
    num_clients: int,
    num_requests: int,
    *,
    first_round: int,
) -> LoadRun:
    asked = [
        [
            bench.fields(question, bench.sizes.num_load_tokens)
            for question in questions_of(client, num_requests, first_round)
        ]
        for client in range(num_clients)
    ]
    return run_load(url, mode, asked, timeout_s=REQUEST_TIMEOUT_S)


def questions_of(client: int, num_requests: int, first_round: int) -> list[str]:
    """Nobody else asks them."""
    first = client * num_requests
    places = [divmod(first + index, NUM_QUESTIONS) for index in range(num_requests)]
    return [
        questions(NUM_QUESTIONS, round_index=first_round + round_index)[place]
        for round_index, place in places
    ]


def _beside_each_other(
    bench: LoadBench, num_clients: int, runs: Mapping[str, LoadRun]
) -> Iterator[Measurement]:
    what = f"{num_clients} client(s)"
    for mode, run in runs.items():
        if run.errors:
            reason = (
                f"{len(run.errors)} of {len(run.errors) + run.num_answers} requests: "
                + (run.errors[0])
            )
            yield Missing(f"load_{num_clients}_{mode}", what, DTYPE, reason, is_failure=True)
    ours = runs["latent"]
    if any(not run.latencies_s for run in runs.values()):
        return
    for mode in PEERS:
        peer = runs[mode]
        name = f"load_{num_clients}_{mode}"
        yield bench.compare(
            f"{name}_p50",
            f"{what}, p50",
            "s",
            ours=Figures("latent", ours.latencies_s),
            baseline=Figures(f"mode {mode}", peer.latencies_s),
        )
        yield bench.compare(
            f"{name}_rate",
            f"{what}, throughput",
            "requests/s",
            ours=Figures("latent", [ours.requests_per_s]),
            baseline=Figures(f"mode {mode}", [peer.requests_per_s]),
        )
