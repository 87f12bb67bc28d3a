"""How long replicas go on for a client that has hung up."""

import json
import time
from collections.abc import Mapping
from typing import Any

import httpx

from benchmarks.measure import Bar, Figures, Measurement
from benchmarks.questions import questions
from benchmarks.serving.cluster import REQUEST_TIMEOUT_S
from benchmarks.serving.load_measures import LoadBench
from deployments.app import build_app

NUM_TOKENS = 1_500  # nobody waits for them
POLL_S = 0.01
MAX_CANCEL_S = 1.0
# In the middle of a prompt or of thinking in the first group, and of speaking in the second.
EVENTS = {"cancel_thinking": "agent.started", "cancel_speaking": "answer.delta"}


def measure_cancel(bench: LoadBench) -> list[Measurement]:
    """From the moment a client hangs up until no replica has anything to do."""
    measured: list[Measurement] = []
    with (
        bench.cluster.hosting(build_app(bench.args()), "left", route_prefix="/left"),
        httpx.Client(base_url=f"{bench.cluster.url}/left", timeout=REQUEST_TIMEOUT_S) as http,
    ):
        for name, event in EVENTS.items():
            seconds = [
                _seconds_until_idle(bench, http, event, round_index)
                for round_index in range(bench.sizes.num_rounds + 1)
            ][1:]  # the first one warms up
            measured.append(
                bench.compare(
                    name,
                    f"client leaves at {event}",
                    "s",
                    ours=Figures("until idle", seconds),
                    baseline=Figures("the bar", [MAX_CANCEL_S]),
                    bar=Bar("<=", 1.0),
                    note=f"the slowest of them {max(seconds):.2f} s; asking is in it: "
                    "GET /v1/stats, again and again",
                )
            )
    return measured


def _seconds_until_idle(
    bench: LoadBench, http: httpx.Client, event: str, round_index: int
) -> float:
    (question,) = questions(1, round_index=round_index)
    fields = bench.fields(question, NUM_TOKENS) | {"stream": True}
    with http.stream("POST", "/v1/reason", json=fields) as response:
        for line in response.iter_lines():
            if line == f"event: {event}":
                break
            if line == "event: error":
                raise RuntimeError(f"the stream failed before {event}")
    left_at = time.perf_counter()
    while not _is_idle(http.get("/v1/stats").raise_for_status().json()):
        time.sleep(POLL_S)
    return time.perf_counter() - left_at


def _is_idle(stats: Mapping[str, Any]) -> bool:
    replicas = [replica for group in stats["groups"].values() for replica in group]
    if not replicas:
        raise RuntimeError(f"no replica answers: {json.dumps(stats)}")
    return not any(replica["num_running"] or replica["num_waiting"] for replica in replicas)
