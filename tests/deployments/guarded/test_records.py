"""What logs and spans have of a request, and what they never have."""

from pathlib import Path

import httpx
import pytest
import ray

from deployments.api.keys import digest_of
from tests.deployments.guarded.guarded import QUESTION
from tests.deployments.keys import ALICE, BOB

pytestmark = [pytest.mark.serve, pytest.mark.slow]


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
