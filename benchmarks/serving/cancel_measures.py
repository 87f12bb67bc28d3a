"""How long replicas go on for a client that has hung up."""

import json
import statistics
import time
from typing import NamedTuple

import httpx

from benchmarks.measure import Bar, Figures, Measurement
from benchmarks.questions import questions
from benchmarks.serving.cluster import REQUEST_TIMEOUT_S
from benchmarks.serving.load_measures import LoadBench
from deployments.app import build_app

NUM_TOKENS = 1_000  # nobody waits for them
POLL_S = 0.01
MAX_CANCEL_S = 1.0
MAX_WAIT_S = 60.0
NUM_LOOKS = 4  # between two agents of a request no replica has anything to do for a moment
# In the middle of a prompt or of thinking in the first group, and of speaking in the second.
EVENTS = {"cancel_thinking": "agent.started", "cancel_speaking": "answer.delta"}


class _Look(NamedTuple):
    """What all replicas have to do, and what they have done."""

    num_busy: int
    num_rows: int


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
                    ours=Figures("the slowest", [max(seconds)]),
                    baseline=Figures("the bar", [MAX_CANCEL_S]),
                    bar=Bar("<=", 1.0),
                    note=f"of {len(seconds)}, the median took {statistics.median(seconds):.2f} s; "
                    "asking is in it: GET /v1/stats, again and again",
                )
            )
    return measured


def _seconds_until_idle(
    bench: LoadBench, http: httpx.Client, event: str, round_index: int
) -> float:
    (question,) = questions(1, round_index=round_index)
    fields = bench.fields(question, NUM_TOKENS) | {"stream": True}
    with http.stream("POST", "/v1/reason", json=fields) as response:
        last = ""
        for line in response.iter_lines():
            if line == f"event: {event}":
                break
            last = line or last
        else:
            raise RuntimeError(f"the stream ended before {event}, with {last}")
    return _seconds_of_work_left(http)


def _seconds_of_work_left(http: httpx.Client) -> float:
    """Until the first of several looks between which no row is computed and none waits."""
    left_at = time.perf_counter()
    looks = [_look_at(http)]
    idle_since = time.perf_counter()  # a look tells nothing of the time before its answer
    while len(looks) < NUM_LOOKS or any(looks[0] != look or look.num_busy for look in looks):
        now = time.perf_counter()
        if now - left_at > MAX_WAIT_S:
            raise RuntimeError(f"replicas still work {MAX_WAIT_S:g} s after the client left")
        time.sleep(POLL_S)
        looks = [*looks[-NUM_LOOKS + 1 :], _look_at(http)]
        if looks[-1].num_busy or looks[-1] != looks[-2]:
            idle_since = time.perf_counter()
    return idle_since - left_at


def _look_at(http: httpx.Client) -> _Look:
    groups = http.get("/v1/stats").raise_for_status().json()["groups"]
    replicas = [replica for group in groups.values() for replica in group]
    if not all(groups.values()):
        raise RuntimeError(f"a group has no replica that answers: {json.dumps(groups)}")
    return _Look(
        num_busy=sum(replica["num_running"] + replica["num_waiting"] for replica in replicas),
        num_rows=sum(replica["num_rows_total"] for replica in replicas),
    )
