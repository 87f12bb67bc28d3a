"""The benchmark of many connections sees what a service does wrong, and what it leaves behind."""

import itertools
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psutil
import pytest

from benchmarks.connections import crowd_lines
from benchmarks.measure import Comparison, Missing, percentile
from benchmarks.serving.connection_measures import QUICK, Crowded, Sizes, held_in, measured
from benchmarks.serving.crowd import CrowdRun, Reply, asks_of, problem_of, run_crowd
from benchmarks.serving.footprint import Footprint, footprints, serving_name
from benchmarks.serving.prober import Probe, Prober

KINDS = {"whole", "streamed", "chat", "streamed chat", "leaves"}


class FakeService(ThreadingHTTPServer):
    """Answers as the test says: ``statuses`` in turn, whatever is asked."""

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses = itertools.cycle(statuses)
        self.connections: set[tuple[str, int]] = set()
        self.ends_streams_with_error = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeService
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.server.connections.add(self.client_address)
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status = next(self.server.statuses)
        content = self._stream() if body.get("stream") and status == 200 else b"{}"
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        if body.get("stream"):
            self.send_header("content-type", "text/event-stream")
        if status == 503:
            self.send_header("retry-after", "1")
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.send_response(next(self.server.statuses))
        self.send_header("content-length", "0")
        self.end_headers()

    def _stream(self) -> bytes:
        if self.server.ends_streams_with_error:
            return b'data: {"error": {"code": "unavailable", "message": "lost."}}\n\n'
        return b'data: {"text": "8"}\n\n' * 30

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def service(request: pytest.FixtureRequest) -> Iterator[FakeService]:
    """Its parameter: the statuses."""
    with FakeService(*getattr(request, "param", (200,))) as service:
        thread = threading.Thread(target=service.serve_forever)
        thread.start()
        yield service
        service.shutdown()
        thread.join()


def make_run(*replies: Reply) -> CrowdRun:
    return CrowdRun(2, 1.0, replies)


def make_crowded(**fields: Any) -> Crowded:
    """A run without fault."""
    same = {"Ingress 1": Footprint(100_000_000, 50)}
    values: dict[str, Any] = {
        "run": make_run(Reply("whole", 200, 0.5)),
        "quiet": [Probe(0.001, None)] * 10,
        "probes": [Probe(0.01, None)] * 100,
        "left_over": {},
        "before": same,
        "after": same,
    }
    return Crowded(**values | fields)


def problems_in(crowded: Crowded) -> str:
    return " ".join(one.reason for one in measured(crowded, QUICK) if isinstance(one, Missing))


def bars_missed_in(crowded: Crowded) -> list[str]:
    comparisons = [one for one in measured(crowded, QUICK) if isinstance(one, Comparison)]
    return [one.name for one in comparisons if one.is_bar_met is False]


@pytest.mark.parametrize(
    ("status", "retry_after", "words"),
    [
        (200, None, None),
        (429, "3", None),
        (503, "5", None),
        (429, None, "429 with Retry-After None"),
        (503, "soon", "503 with Retry-After 'soon'"),
        (500, "5", "status 500"),
        (504, None, "status 504"),
        (302, None, "status 302"),
    ],
)
def test_only_answers_and_refusals_that_say_when_to_come_back_may_come(
    status: int, retry_after: str | None, words: str | None
) -> None:
    problem = problem_of(status, retry_after)
    assert problem is None if words is None else words in str(problem)


def test_percentiles_lie_between_the_values_beside_them() -> None:
    values = [float(value) for value in range(101)]
    assert percentile(values, 99) == 99.0
    assert percentile(values[::-1], 50) == 50.0
    assert percentile([0.0] * 99 + [10.0], 99) == pytest.approx(0.1)
    assert percentile([7.0], 99) == 7.0
    assert percentile([], 99) != percentile([], 99)


def test_every_client_asks_every_kind_and_no_question_twice() -> None:
    asked = [ask for client in range(200) for ask in itertools.islice(asks_of(client), 5)]
    assert all({ask.kind for ask in asked[i : i + 5]} == KINDS for i in range(0, 1000, 5))
    assert {ask.kind for ask in asked[::5]} == KINDS, "all begin with the same"
    assert len({(ask.kind, str(ask.body)) for ask in asked}) == len(asked)
    leaving = [ask for ask in asked if ask.leaves_behind is not None]
    assert [ask.kind for ask in leaving] == ["leaves"] * 200
    assert {ask.leaves_behind for ask in leaving} == set(range(1, 29, 3))


def test_each_client_keeps_a_connection_until_it_hangs_up(service: FakeService) -> None:
    run = run_crowd(service.url, num_clients=3, seconds=0.3)
    statuses = run.num_by_kind
    assert statuses.keys() == KINDS
    assert all(counts.keys() == {"200"} for counts in statuses.values())
    assert run.problems == {}
    num_left = statuses["leaves"]["200"]
    assert len(run.answered_s) == len(run.replies) - num_left
    assert 3 <= len(service.connections) <= 3 + num_left < len(run.replies)


@pytest.mark.parametrize("service", [(500, 503)], indirect=True)
def test_wrong_statuses_are_counted_and_refused_clients_wait(service: FakeService) -> None:
    run = run_crowd(service.url, num_clients=1, seconds=0.2)
    assert [reply.status for reply in run.replies] == [500, 503], "it did not wait"
    assert run.problems == {"status 500": 1}
    assert run.answered_s == []


def test_stream_that_ends_with_an_error_is_a_problem(service: FakeService) -> None:
    service.ends_streams_with_error = True
    run = run_crowd(service.url, num_clients=1, seconds=0.2)
    (problem,) = run.problems
    assert problem == "stream ended with unavailable: lost."


def test_nobody_who_answers_is_a_problem() -> None:
    with FakeService(200) as closed:
        url = closed.url
    run = run_crowd(url, num_clients=1, seconds=0.05)
    assert {reply.status for reply in run.replies} == {None}
    assert all(problem.startswith("ConnectError") for problem in run.problems)


@pytest.mark.parametrize("service", [(200, 503)], indirect=True)
def test_prober_asks_at_its_pace_and_tells_what_is_no_200(service: FakeService) -> None:
    prober = Prober(service.url, 0.01)
    prober.begin(seconds=0.06)
    probes = prober.finish()
    assert sorted(probe.problem or "" for probe in probes) == [""] * 3 + ["status 503"] * 3
    assert all(probe.duration_s > 0 for probe in probes)


def test_footprints_are_of_the_living() -> None:
    found = footprints({"this": psutil.Process(os.getpid())})
    assert found["this"].own_bytes > 2**20
    assert found["this"].num_files >= 3


def test_what_is_held_is_counted_without_adapters_and_without_the_asking_itself() -> None:
    replica = {"num_running": 0, "num_waiting": 0, "num_memories": 0}
    replica |= {"num_used_blocks": 7, "adapters": {"num_blocks": 7}}
    transfer = {"num_bytes": 0, "num_parcels": 0, "num_runs": 0, "max_bytes": 100}
    stats: dict[str, Any] = {
        "groups": {"a": [replica], "b": [replica, replica]},
        "transfer": transfer,
        "requests": {"num_ongoing": 1},
    }
    assert held_in(stats) == {}
    stats["groups"]["b"][1] = replica | {"num_used_blocks": 9, "num_memories": 1}
    stats["transfer"] = transfer | {"num_runs": 2}
    stats["requests"] = {"num_ongoing": 4}
    left = {"num_memories": 1, "num_used_blocks": 2, "num_runs": 2, "num_requests": 3}
    assert held_in(stats) == left


def test_run_without_fault_meets_all_bars() -> None:
    crowded = make_crowded()
    assert problems_in(crowded) == ""
    assert bars_missed_in(crowded) == []


def test_every_fault_is_told() -> None:
    crowded = make_crowded(
        run=make_run(Reply("chat", 500, 1.0, "status 500"), Reply("whole", 200, 1.0)),
        probes=[Probe(0.01, None), Probe(0.01, "status 503")],
        left_over={"num_running": 2},
        after={},
    )
    words = ("1 x status 500", "/healthz: status 503", "num_running is 2", "Ingress 1 has ended")
    assert all(word in problems_in(crowded) for word in words)
    lines = "\n".join(crowd_lines(crowded))
    assert all(word in lines for word in ("500: 1", "200: 1", "status 500", "num_running"))


def test_slow_probes_and_growth_miss_their_bars() -> None:
    slow = [Probe(0.01, None)] * 97 + [Probe(0.3, None)] * 3
    grown = {"Ingress 1": Footprint(150_000_000, 50)}
    assert bars_missed_in(make_crowded(probes=slow)) == ["healthz_p99"]
    assert bars_missed_in(make_crowded(after=grown)) == ["growth Ingress 1 MB"]


def test_memory_of_a_pool_may_be_taken_later_but_no_files() -> None:
    crowded = make_crowded(
        before={"thinkers 2": Footprint(10**9, 50)}, after={"thinkers 2": Footprint(2 * 10**9, 99)}
    )
    assert bars_missed_in(crowded) == ["growth thinkers 2 open files"]


def test_quick_is_less_of_the_same() -> None:
    full = vars(Sizes())
    assert all(value < full[name] for name, value in vars(QUICK).items())


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("ray::ServeReplica:crowded:thinkers", "thinkers"),
        ("ray::ServeReplica:crowded:Ingress.handle_request_streaming", "Ingress"),
        ("ray::ProxyActor.ready", "ProxyActor"),
        ("ray::ServeController.run", None),
        ("python -m benchmarks.connections", None),
    ],
)
def test_processes_that_requests_pass_through_are_told_by_their_titles(
    title: str, name: str | None
) -> None:
    assert serving_name(title) == name
