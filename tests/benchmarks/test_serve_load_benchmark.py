"""The load benchmark measures what it says: its clients, its sides, and a whole tiny run."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.machine import ROOT
from benchmarks.measure import Comparison, Missing
from benchmarks.serve_load import MEASUREMENTS, measure_all
from benchmarks.serving.clients import LoadRun, run_load
from benchmarks.serving.load_measures import MODES, QUICK, Sizes, questions_of
from benchmarks.serving.load_table import load_lines
from benchmarks.serving.served_app import app_args

TINY = Sizes(
    num_rounds=1,
    latent_steps=2,
    num_tokens=6,
    num_requests={1: 1, 3: 2},
    num_load_tokens=4,
    idle_s=0.1,
)
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "latent_steps": 1}


class FakeService(ThreadingHTTPServer):
    """Refuses the question "bad"; notes what is asked and how many wait at a time."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.asked: list[dict[str, Any]] = []
        self.num_waiting = self.max_waiting = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeService

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.asked.append(body)
            self.server.num_waiting += 1
            self.server.max_waiting = max(self.server.max_waiting, self.server.num_waiting)
        time.sleep(0.01)  # long enough for a client that does not wait to be seen
        with self.server.lock:
            self.server.num_waiting -= 1
        answer = json.dumps({"usage": USAGE}).encode()
        self.send_response(503 if body["question"] == "bad" else 200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def service() -> Iterator[FakeService]:
    with FakeService() as service:
        thread = threading.Thread(target=service.serve_forever)
        thread.start()
        yield service
        service.shutdown()
        thread.join()


def test_each_client_sends_its_next_request_once_the_last_is_answered(service) -> None:
    asked = [[{"question": f"{client}-{index}"} for index in range(4)] for client in range(3)]
    run = run_load(service.url, "latent", asked, timeout_s=30)
    assert service.max_waiting <= 3
    assert sorted(body["question"] for body in service.asked) == sorted(
        fields["question"] for of_client in asked for fields in of_client
    )
    assert {body["mode"] for body in service.asked} == {"latent"}
    assert (run.num_answers, run.errors) == (12, [])
    assert run.usage == {field: 12 * number for field, number in USAGE.items()}
    assert run.requests_per_s == 12 / run.duration_s


def test_a_refused_request_is_an_error_without_a_latency(service) -> None:
    run = run_load(service.url, "text", [[{"question": "good"}, {"question": "bad"}]], timeout_s=30)
    assert run.num_answers == 1
    assert [error.partition(":")[0] for error in run.errors] == ["503"]


def test_a_service_that_is_not_there_is_an_error(service) -> None:
    run = run_load("http://127.0.0.1:1", "text", [[{"question": "good"}]], timeout_s=30)
    assert run.num_answers == 0
    assert run.errors[0].startswith("ConnectError")


def test_percentiles_are_in_the_table_and_in_the_json() -> None:
    latencies = [float(number) for number in range(101)]
    run = LoadRun("text", 8, 50.5, latencies, USAGE, ["503: full"])
    assert [run.as_dict()[f"p{p}_s"] for p in (50, 90, 99)] == [50.0, 90.0, 99.0]
    line = list(load_lines([run]))[1].split()
    assert line == ["8", "text", "101", "1", "50.00", "90.00", "99.00", "2.000", "5", "2", "1"]


def test_no_question_is_asked_twice_but_in_each_mode() -> None:
    asked = [
        question
        for index, (num_clients, num_requests) in enumerate(Sizes().num_requests.items())
        for client in range(num_clients)
        for question in questions_of(client, num_requests, first_round=1 + 100 * index)
    ]
    assert len(set(asked)) == len(asked)


def test_the_application_is_that_of_serve_config_but_for_model_and_dtype() -> None:
    (application,) = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"]
    args = app_args("embedded:smollm2-135m-instruct", 1)
    assert [(group.name, list(group.agents)) for group in args.groups] == [
        (group["name"], group["agents"]) for group in application["args"]["groups"]
    ]
    assert args.latent_steps == application["args"]["latent_steps"]
    engines = [args.engine_of(group) for group in args.groups]
    assert engines[0] == engines[1]
    assert (engines[0].dtype, engines[0].num_threads) == ("float32", 1)


def test_the_fused_application_has_the_same_agents_and_engine_in_one_group() -> None:
    args, fused = app_args("some-model", 1), app_args("some-model", 1, is_fused=True)
    (everyone,) = fused.groups
    assert set(fused.agents_of(everyone)) == set(args.group_of)
    assert fused.engine_of(everyone) == args.engine_of(args.groups[0])


@pytest.mark.bench
@pytest.mark.serve
@pytest.mark.slow
def test_every_measurement_runs_and_answers_are_those_in_process(tiny_qwen2: Path) -> None:
    taken = measure_all(str(tiny_qwen2), TINY, 1, list(MEASUREMENTS))
    assert not [one for one in taken.measurements if isinstance(one, Missing)], taken.measurements
    by_name = {one.name: one for one in taken.measurements if isinstance(one, Comparison)}
    agreed = [one.agreement for one in by_name.values() if one.agreement is not None]
    assert len(agreed) == 2
    assert all(agreement.is_complete for agreement in agreed)
    assert {name for name, one in by_name.items() if one.bar} == {
        "served_two",
        "served_one",
        "cancel_thinking",
        "cancel_speaking",
    }
    assert "TOO SHORT" in by_name["served_two"].note
    assert [(run.num_clients, run.mode, run.num_answers) for run in taken.runs] == [
        (num_clients, mode, num_clients * num_requests)
        for num_clients, num_requests in TINY.num_requests.items()
        for mode in MODES
    ]
    for latent, text, single in zip(*[iter(taken.runs)] * 3, strict=True):
        num_answers = latent.num_answers
        assert [run.usage["completion_tokens"] for run in (latent, text, single)] == [
            TINY.num_load_tokens * num_answers * num_writers for num_writers in (1, 4, 1)
        ]
        assert latent.usage["latent_steps"] == 3 * TINY.latent_steps * num_answers


def test_quick_is_less_of_the_same() -> None:
    full = Sizes()
    assert QUICK.num_requests.keys() == full.num_requests.keys()
    assert all(QUICK.num_requests[n] <= number for n, number in full.num_requests.items())
    assert QUICK.num_rounds < full.num_rounds
    assert (QUICK.latent_steps, QUICK.num_tokens) == (full.latent_steps, full.num_tokens)
