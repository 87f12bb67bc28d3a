"""Keys, ids and logs of a running application, and what arrives at its sockets beside requests."""

import json
import select
import socket
import time
from pathlib import Path

import httpx
import openai
import pytest
import ray
from ray import serve

from benchmarks.serving.connection_measures import left_over_of
from benchmarks.serving.crowd import run_crowd
from deployments.api.keys import digest_of
from deployments.app import build_app
from deployments.args import AppArgs
from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.context.conversations.conversations import Conversations
from tests.context.conversations.answers import take_turn
from tests.deployments.keys import ALICE, BOB
from tests.deployments.service import Service
from tests.deployments.test_keys import entry, write
from tests.deployments.wrong_calls import CHAT, JSON, MAX_BODY_BYTES, WRONG
from tests.factories import make_tiny_model

pytestmark = [pytest.mark.serve, pytest.mark.slow]

QUESTION = "Which colour has the unicorn in the cellar?"
BODY_TIMEOUT_S = 1.0
MAX_PER_MINUTE = 3
MAX_ONGOING = 8
MAX_QUEUED = 4


class Guarded(Service):
    """With a key on every call, and the log files of its replicas."""

    def __init__(self, port: int, folder: Path) -> None:
        super().__init__(port)
        self.logs = folder / "logs"
        self.database = database_of(folder)
        self.present(ALICE)

    def lines(self, event: str) -> list[dict]:
        """All lines about requests or stages, with the name of their file."""
        return [
            line | {"file": path.name}
            for path in self.logs.rglob("*.log")
            for text in path.read_text().splitlines()
            if (line := json.loads(text)).get("event") == event
        ]


def database_of(folder: Path) -> str:
    return f"sqlite:///{folder}/conversations.db"


@pytest.fixture(scope="module")
def service(serve_port, tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    limits = {"max_requests_per_minute": MAX_PER_MINUTE}
    bob = entry("bob", BOB, limits=limits)
    keys = write(folder / "keys.yaml", entry("alice", tenant="team"), bob)
    args = {
        "engine": {
            "model_name": str(make_tiny_model(folder / "model", "qwen2")),
            "device": "cpu",
            "dtype": "float32",
            "kv_cache_bytes": 2**24,
        },
        "latent_steps": 2,
        "max_ongoing_requests": MAX_ONGOING,
        "max_queued_requests": MAX_QUEUED,
        "groups": [
            {"name": "thinkers", "agents": ["planner", "critic"]},
            {"name": "deciders", "agents": ["refiner", "judger"]},
        ],
        "access": {
            "keys_file": str(keys),
            "require_keys": True,
            "body_timeout_s": BODY_TIMEOUT_S,
            "max_body_bytes": MAX_BODY_BYTES,
        },
        "conversations": {"url": database_of(folder)},
    }
    serve.run(
        build_app(AppArgs.model_validate(args)),
        name=Service.NAME,
        route_prefix="/",
        logging_config={"encoding": "JSON", "logs_dir": str(folder / "logs")},
    )
    with Guarded(serve_port, folder) as service:
        yield service
    serve.delete(Service.NAME)


def test_only_a_right_key_gets_in(service):
    for headers in ({}, {"authorization": "Bearer wrong"}):
        response = httpx.post(
            f"{service.url}/v1/reason", json={"question": QUESTION}, headers=headers
        )
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{service.url}/healthz").status_code == 200
    assert service.ask(question=QUESTION, max_tokens=2).status_code == 200


async def test_conversations_are_those_of_the_callers_tenant(service):
    """They are kept in a file that this process reaches as well."""
    conversations = Conversations(ConversationsConfig(url=service.database))
    await take_turn(conversations, "bob", "bobs", "Which others?")
    await conversations.close()
    asked = {"question": QUESTION, "conversation_id": "mine", "max_tokens": 2}
    first, second = service.ask(**asked), service.ask(**asked)
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.json()["conversation_id"] == "mine"
    assert second.json()["usage"]["prompt_tokens"] > first.json()["usage"]["prompt_tokens"]
    listed = service._http.get("/v1/conversations").json()["data"]
    assert [(one["id"], one["title"]) for one in listed] == [("mine", QUESTION)]
    assert service._http.get("/v1/conversations/mine").json()["turns"][0]["question"] == QUESTION
    assert service._http.get("/v1/conversations/bobs").status_code == 404


def test_one_request_is_followed_by_its_id_through_ingress_and_replicas(service):
    response = service._http.post(
        "/v1/reason",
        json={"question": QUESTION, "max_tokens": 2, "temperature": 0},
        headers={"x-request-id": "follow-me-1"},
    )
    assert response.headers.get_list("x-request-id") == ["follow-me-1"]
    result = response.json()

    def mine(event):
        return [line for line in service.lines(event) if line["request_id"] == "follow-me-1"]

    service.wait_until(
        lambda: len(mine("request")) == 1 and len(mine("stage")) == 2,
        timeout_s=10,
        says=lambda: [mine("request"), mine("stage")],
    )
    (line,) = mine("request")
    assert (line["status"], line["key_name"], line["tenant"]) == (200, "alice", "team")
    assert (line["pipeline"], line["mode"]) == ("hierarchical", "latent")
    assert line["completion_tokens"] == result["usage"]["completion_tokens"]
    assert line["deployment"] == "latentmas_Ingress"
    stages = mine("stage")
    assert {one["run_id"] for one in stages} == {result["id"]} == {line["run_id"]}
    assert {one["group"] for one in stages} == {"thinkers", "deciders"}
    assert {one["replica"] for one in stages} == {one["replica"] for one in service.replicas()}
    assert sum(one["latent_steps"] for one in stages) == result["usage"]["latent_steps"]
    assert len({one["file"] for one in stages}) == 2, "each in the log of its own replica"


def test_spans_of_ingress_and_replicas_come_to_a_collector_in_the_trace_of_the_client(
    service, otlp
):
    trace_id, parent = "5af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    response = service._http.post(
        "/v1/reason",
        json={"question": QUESTION, "max_tokens": 2, "temperature": 0},
        headers={"traceparent": f"00-{trace_id}-{parent}-01"},
    )
    run_id = response.json()["id"]
    expected = {"POST /v1/reason", "run hierarchical", "queued", "prefill", "thinking", "speaking"}
    expected |= {"fetch memory", "pack memory"}
    expected |= {f"agent {name}" for name in ("planner", "critic", "refiner", "judger")}
    stages = ("planner+critic", "refiner+judger")
    expected |= {f"{kind} {stage}" for kind in ("call", "stage") for stage in stages}

    def names():
        return {span.name for span, _ in otlp.spans_of(trace_id)}

    service.wait_until(lambda: names() == expected, timeout_s=10, says=names)
    seen = otlp.spans_of(trace_id)
    by_id = {span.span_id: span for span, _ in seen}
    (root,) = [span for span, _ in seen if span.parent_span_id not in by_id]
    assert (root.name, root.parent_span_id.hex()) == ("POST /v1/reason", parent)
    sent_by = {span.name: sender["service.instance.id"] for span, sender in seen}
    assert len({sent_by[name] for name in (root.name, *(f"stage {s}" for s in stages))}) == 3
    assert {sender["service.name"] for _, sender in seen} == {"latentmas"}
    for secret in (QUESTION, ALICE, digest_of(ALICE).hex()):
        assert secret not in str(seen)

    def traces_of_lines():
        lines = [*service.lines("request"), *service.lines("stage")]
        return [line.get("trace_id") for line in lines if line.get("run_id") == run_id]

    service.wait_until(lambda: traces_of_lines() == [trace_id] * 3, timeout_s=10)


def test_odd_id_is_answered_as_it_came_and_encoded_in_all_logs_alike(service):
    response = service._http.post(
        "/v1/reason",
        json={"question": QUESTION, "max_tokens": 2},
        headers={"x-request-id": "not good"},
    )
    assert response.headers.get_list("x-request-id") == ["not good"]

    def count(event):
        return sum(line["request_id"] == "not%20good" for line in service.lines(event))

    service.wait_until(lambda: (count("request"), count("stage")) == (1, 2), timeout_s=10)


def test_slow_client_is_cut_and_holds_nobody_up(service):
    head = (
        "POST /v1/reason HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {ALICE}\r\nContent-Length: 100\r\n\r\n"
    )
    began_at = time.monotonic()
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as slow:
        slow.sendall(head.encode() + b'{"question": ')
        assert service.ask(question=QUESTION, max_tokens=2).status_code == 200
        answer = b""
        while part := slow.recv(65536):  # until the service closes the connection
            answer += part
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in answer
    assert time.monotonic() - began_at < BODY_TIMEOUT_S + 10


def test_endless_body_is_cut(service):
    head = (
        "POST /v1/reason HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {ALICE}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    is_cut = False
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as endless:
        endless.sendall(head.encode())
        deadline = time.monotonic() + 20
        while not is_cut:
            assert time.monotonic() < deadline, "it may send for ever"
            try:
                endless.sendall(chunk)
                is_cut = bool(select.select([endless], [], [], 0)[0])
            except (BrokenPipeError, ConnectionResetError):
                is_cut = True
    assert service.ask(question=QUESTION, max_tokens=2).status_code == 200


def test_client_that_leaves_within_its_body_harms_nobody(service):
    for content in (b"", b'{"question": "W'):
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as leaving:
            head = f"POST /v1/reason HTTP/1.1\r\nHost: x\r\nX-API-Key: {ALICE}\r\n"
            leaving.sendall(head.encode() + b"Content-Length: 100\r\n\r\n" + content)
    assert service.ask(question=QUESTION, max_tokens=2).status_code == 200
    service.wait_until_idle()


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"Authorization: Bearer \xff", b"401"),
        (b"X-API-Key: \x80", b"401"),
        (b"\xff: x", b"400"),
        (b"X-Request-Id: \xff", b"401"),
        (b"Serve-Multiplexed-Model-Id: \xff", b"401"),
        (b"X-Session-Id: \xff", b"401"),
    ],
)
def test_header_that_is_no_text_harms_nobody(service, header, status):
    head = b"GET /v1/stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    answer = talk(service, head + header + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status), answer
    assert b"Traceback" not in answer
    # What is no HTTP uvicorn refuses before any code of ours sees it.
    assert (b'{"error":' in answer) == (status != b"400")
    assert service.ask(question=QUESTION, max_tokens=2).status_code == 200


def talk(service, *parts, pause_s=0.0):
    """All that comes back on a connection of its own until the service closes it."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                if select.select([connection], [], [], pause_s)[0]:
                    break  # it answers before it has everything
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def test_wrong_input_has_its_status_and_shape_and_leaves_the_service_as_it_was(service):
    for name, (path, content, headers, status, code) in WRONG.items():
        response = service._http.post(path, content=content, headers=headers)
        assert response.status_code == status, f"{name}: {response.text}"
        error = response.json()["error"]
        assert list(error) == ["message", "type", "param", "code"], name
        assert error["code"] == code, f"{name}: {error}"
        assert len(response.headers.get_list("x-request-id")) == 1, name
    for method in ("HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"):
        response = service._http.request(method, "/v1/reason")
        assert (response.status_code, response.headers["allow"]) == (405, "POST"), method
    zero = service._http.post(
        "/v1/reason", content=b'{"question": "\\u0000\xc2\x85x", "max_tokens": 2}', headers=JSON
    )
    assert zero.status_code == 200, zero.text
    service.wait_until_idle()
    assert service.ask(question=QUESTION, max_tokens=2).status_code == 200


def test_more_than_a_key_may_ask_is_429_and_says_when_to_come_back(service):
    headers = {"authorization": f"Bearer {BOB}"}
    responses = [
        service._http.get("/v1/models", headers=headers) for _ in range(MAX_PER_MINUTE + 1)
    ]
    assert {response.status_code for response in responses[:-1]} == {200}
    assert responses[-1].status_code == 429
    assert responses[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert 0 < int(responses[-1].headers["retry-after"]) <= 60


def test_crowd_beyond_all_limits_is_told_when_to_come_back_and_leaves_nothing(service):
    def crowd(key, num_clients, seconds):
        headers = {"authorization": f"Bearer {key}"}
        return run_crowd(service.url, num_clients=num_clients, seconds=seconds, headers=headers)

    crowds = [crowd(BOB, MAX_PER_MINUTE + 2, 0.5), crowd(ALICE, 40, 2.0)]
    assert [one.problems for one in crowds] == [{}, {}]
    of_bob, of_alice = ({reply.status for reply in one.replies} for one in crowds)
    assert 429 in of_bob, "more than the key may ask"
    assert of_alice == {200, 503}, "more than the ingress takes at a time"
    assert left_over_of(service._http) == {}


def test_body_that_drips_is_cut(service):
    head = (
        "POST /v1/reason HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {ALICE}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    began_at = time.monotonic()
    drops = (b"1\r\nx\r\n" for _ in range(1000))
    answer = talk(service, head.encode(), *drops, pause_s=0.1)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in answer
    assert BODY_TIMEOUT_S <= time.monotonic() - began_at < BODY_TIMEOUT_S + 10


def test_clients_do_not_choose_serves_time_limit(service):
    headers = {"x-request-timeout-seconds": "0.000001", "x-request-disconnect-disabled": "?1"}
    body = {"question": QUESTION, "max_tokens": 2}
    response = service._http.post("/v1/reason", json=body, headers=headers)
    assert response.status_code == 200


def test_stream_that_the_client_breaks_off_frees_everything(service):
    body = {"question": QUESTION, "max_tokens": 1500, "ignore_eos": True, "stream": True}
    for path, fields in (
        ("/v1/reason", {}),
        (CHAT, {"model": "latentmas/chat", "messages": [{"role": "user", "content": QUESTION}]}),
    ):
        sent = body | fields
        if fields:
            sent = fields | {"max_tokens": 1500, "stream": True, "latentmas": {"ignore_eos": True}}
        with service._http.stream("POST", path, json=sent) as response:
            assert response.status_code == 200
            next(response.iter_raw())
        service.wait_until_idle()


def test_openais_client_raises_its_own_classes_for_keys_and_limits(service):
    message = {"role": "user", "content": QUESTION}

    def chat(key):
        url = f"{service.url}/v1"
        with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
            options = {"model": "latentmas/chat", "max_tokens": 2}
            return client.chat.completions.create(messages=[message], **options)

    assert chat(ALICE).usage.completion_tokens == 2
    with pytest.raises(openai.AuthenticationError) as caught:
        chat("wrong")
    assert caught.value.code == "invalid_api_key"
    bobs = [caught_by(openai.RateLimitError, chat, BOB) for _ in range(MAX_PER_MINUTE + 1)]
    assert bobs[-1].code == "rate_limit_exceeded"


def caught_by(kind, call, *arguments):
    """The error of that kind, if there is one."""
    try:
        call(*arguments)
    except kind as error:
        return error
    return None


def test_no_key_hash_question_or_answer_is_in_any_log_of_the_cluster_or_is_told(service):
    """Wherever a client may have put them."""
    for headers in ({"authorization": ALICE}, {"cookie": ALICE}, {"x-api-key": ALICE + BOB}):
        url = f"{service.url}/v1/stats?api_key={ALICE}"
        assert httpx.get(url, headers=headers).status_code == 401
    assert service.ask(question=QUESTION, **{ALICE: ALICE}).status_code == 422
    answer = service.ask(question=QUESTION, max_tokens=12, temperature=0).json()["final_answer"]
    folders = [service.logs, Path(ray._private.worker._global_node.get_logs_dir_path())]
    texts = [
        path.read_text(errors="replace")
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    ]
    assert any("key_name" in text for text in texts), "nothing was logged"
    for read in ("stats", "models", "agents", "pipelines", "adapters"):
        texts.append(service.get(f"/v1/{read}").text)
    secrets = [QUESTION, "unicorn", ALICE, BOB, digest_of(ALICE).hex(), digest_of(BOB).hex()]
    secrets += [answer] if len(answer) >= 8 else []
    for secret in secrets:
        assert not [text for text in texts if secret in text]
