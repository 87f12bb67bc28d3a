"""The whole stack on a tiny model: wrong input, clients that leave, replicas that die."""

import asyncio
import json

import httpx
import psutil
import pytest

from benchmarks.measure import Missing
from benchmarks.serving.connection_measures import Sizes, crowd_at, measured
from tests.deployments.service import events_of
from tests.factories import make_tiny_model

pytestmark = [pytest.mark.serve, pytest.mark.own_cluster]

MAX_POSITIONS = 16384
SHORT = {"question": "What is 17 times 3?", "max_tokens": 8, "temperature": 0}
# Would take some twenty seconds, were it not for what ends it.
ENDLESS = SHORT | {"max_tokens": 12_000, "ignore_eos": True}
# Some seconds.
LONG = SHORT | {"max_tokens": 2_000, "ignore_eos": True}
RECOVERY_S = 120.0


@pytest.fixture(scope="module")
def service(deploy, tmp_path_factory):
    model = make_tiny_model(
        tmp_path_factory.mktemp("tiny"), "qwen2", max_position_embeddings=MAX_POSITIONS
    )
    engine = {
        "model_name": str(model),
        "device": "cpu",
        "dtype": "float32",
        "kv_cache_bytes": 2**26,
    }
    thinkers = {"name": "thinkers", "agents": ["planner", "critic", "medical", "coder"]}
    deciders = {
        "name": "deciders",
        "agents": ["refiner", "math", "judger"],
        "engine": {"max_latent_steps": 64},  # so that one expert can fail alone
    }
    return deploy({"engine": engine, "latent_steps": 4, "groups": [thinkers, deciders]})


@pytest.fixture(autouse=True)
def _left_idle(service):
    yield
    service.wait_until_idle()


def test_it_answers_and_is_live_and_ready(service):
    response = service.ask(**SHORT)
    assert response.status_code == 200
    assert [agent["name"] for agent in response.json()["agents"]] == [
        "planner",
        "critic",
        "refiner",
        "judger",
    ]
    assert service.get("/healthz").status_code == 200
    assert service.get("/readyz").status_code == 200


def test_question_chooses_its_expert_among_the_groups(service):
    body = service.ask(
        **SHORT | {"question": "Is penicillin an antibiotic?", "pipeline": "auto"}
    ).json()
    assert [agent["name"] for agent in body["agents"]] == ["medical", "judger"]
    assert (body["routing"]["domain"], body["transfer"]["hops"]) == ("medical", 1)


def test_documents_are_shown_with_the_question_and_cited(service):
    documents = [{"name": "tables.txt", "text": "17 times 3 is 51."}, "Bees dance."]
    response = service.ask(**SHORT, documents=documents)
    assert response.status_code == 200
    assert response.json()["citations"][0]["document"] == "tables.txt"
    plain = service.ask(**SHORT).json()
    assert response.json()["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]


def test_address_inside_the_network_is_refused_as_a_document(service):
    response = service.ask(**SHORT, documents=[{"url": "http://169.254.169.254/latest"}])
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "documents"


def test_job_in_runpods_shape_is_completed(service):
    job = {"prompt": SHORT["question"], "max_tokens": 4, "temperature": 0}
    body = service.post("/runsync", input=job).json()
    assert body["status"] == "COMPLETED"
    assert [agent["name"] for agent in body["output"][0]["agents"]][-1] == "judger"


def test_http_listens_on_the_loopback_interface_only(service):
    listening = [
        connection.laddr.ip
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == service.port
    ]
    assert set(listening) == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"question": ""}, 422, ["question"]),
        ({"latent_step": 3}, 422, ["latent_step"]),
        ({"mode": "telepathy"}, 422, ["telepathy", "latent", "text", "single"]),
        ({"latent_steps": -1}, 422, ["latent_steps", "-1"]),
        ({"latent_steps": 129}, 422, ["129", "128"]),  # the limit of the thinkers' engine
        ({"carry": "latents", "latent_steps": 0}, 422, ["carry", "0 latent steps"]),
        ({"pipeline": "diagonal"}, 404, ["diagonal", "hierarchical"]),
        ({"question": "x" * 20_000}, 413, ["20000", str(MAX_POSITIONS)]),
        ({"max_tokens": 20_000}, 413, ["answer 20000", str(MAX_POSITIONS)]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_input_is_told_apart_and_leaves_the_service_healthy(service, fields, status, words):
    response = service.ask(**SHORT | fields)
    assert response.status_code == status
    message = response.json()["error"]["message"]
    assert all(word in message for word in words), message
    service.wait_until_idle()
    assert service.ask(**SHORT).status_code == 200


def test_error_of_a_stage_ends_a_stream_with_its_code(service):
    *_, last = service.stream(**SHORT | {"question": "x" * 20_000})
    assert last.name == "error"
    assert last.content["error"]["code"] == "context_length_exceeded"


def test_unknown_route_and_method_have_the_one_shape(service):
    for response, status in [(service.get("/v1/nothing"), 404), (service.get("/v1/reason"), 405)]:
        assert response.status_code == status
        assert list(response.json()) == ["error"]


async def test_client_that_leaves_a_whole_request_ends_its_stages(service):
    before = service.total("num_tokens_total")
    async with service.client() as client:
        asking = asyncio.create_task(client.post("/v1/reason", json=ENDLESS))
        await asyncio.to_thread(wait_for_tokens, service, before)
        asking.cancel()
        await asyncio.wait([asking])
    service.wait_until_idle()
    assert service.total("num_tokens_total") - before < ENDLESS["max_tokens"] / 2


async def test_client_that_leaves_a_stream_ends_its_stages(service):
    before = service.total("num_tokens_total")
    await leave_after(service, "answer.delta", ENDLESS)
    service.wait_until_idle()
    assert service.total("num_tokens_total") - before < ENDLESS["max_tokens"] / 2


def test_expert_that_fails_ends_the_others(service):
    """Medical and coder would write for long, but math must not think so many steps."""
    expects_text = ENDLESS | {"pipeline": "parallel", "handoff": "text"}
    response = service.ask(**expects_text, latent_steps=100)
    assert response.status_code == 422
    assert "'math'" in response.json()["error"]["message"]
    service.wait_until_idle()


def wait_for_tokens(service, num_before):
    service.wait_until(lambda: service.total("num_tokens_total") > num_before, timeout_s=10)


async def leave_after(service, name, body):
    """Read a stream up to the first event of that name, then hang up."""
    async with (
        service.client() as client,
        client.stream("POST", "/v1/reason", json=body | {"stream": True}) as response,
    ):
        async for message in events_of(response):
            if message.name == name:
                return
    raise AssertionError(f"the stream ended without {name}")


async def lose_patience(service, body, *, after_s):
    with pytest.raises(httpx.ReadTimeout):
        async with service.client() as client:
            await client.post("/v1/reason", json=body, timeout=after_s)


async def test_forty_of_fifty_are_answered_while_ten_leave_and_nothing_is_left(service):
    before = service.total("num_tokens_total")
    pipelines = ("hierarchical", "parallel", "sequential")
    modes = ("latent", "latent", "text", "single")
    bodies = [
        SHORT | {"question": f"{i} + 2?", "pipeline": pipelines[i % 3], "mode": modes[i % 4]}
        for i in range(40)
    ]
    leaving = [
        *(leave_after(service, "agent.started", ENDLESS) for _ in range(3)),
        *(leave_after(service, "answer.delta", ENDLESS) for _ in range(3)),
        *(lose_patience(service, ENDLESS, after_s=0.3 * i) for i in range(1, 5)),
    ]
    async with service.client() as client:
        answering = [client.post("/v1/reason", json=body) for body in bodies]
        responses = await asyncio.gather(*answering, *leaving)
    assert [response.status_code for response in responses[:40]] == [200] * 40
    assert all(response.json()["final_answer"] for response in responses[:40])
    service.wait_until_idle()
    assert service.total("num_tokens_total") - before < len(leaving) * ENDLESS["max_tokens"] / 2


def test_crowd_that_comes_twice_is_answered_and_leaves_nothing_behind(service):
    sizes = Sizes(num_clients=30, seconds=2.0, warm_up_s=0.5, quiet_s=0.5)
    crowded = crowd_at(service.url, sizes)
    assert not [one for one in measured(crowded, sizes) if isinstance(one, Missing)]
    assert all(counts.keys() == {"200"} for counts in crowded.run.num_by_kind.values())
    assert len(crowded.run.num_by_kind) == 5
    assert {name.split()[0] for name in crowded.after} >= {"Ingress", "thinkers", "deciders"}


def test_expert_that_fails_is_done_without_where_that_is_asked_for(service):
    response = service.ask(
        **SHORT | {"pipeline": "parallel", "latent_steps": 100, "on_expert_failure": "continue"}
    )
    result = response.json()
    assert response.status_code == 200
    assert result["failed_agents"] == ["math"]
    assert [agent["name"] for agent in result["agents"]] == ["medical", "coder", "judger"]
    (failed,) = [stage for stage in result["stages"] if stage["status"] == "failed"]
    assert "max_latent_steps" in failed["failures"][0]


@pytest.mark.parametrize("field", ["timeout_s", "stage_timeout_s"])
def test_answer_that_takes_too_long_is_504_and_frees_everything(service, field):
    before = service.total("num_tokens_total")
    response = service.ask(**ENDLESS | {field: 1.0})
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"
    assert response.json()["error"]["param"] == field
    service.wait_until_idle()
    assert service.total("num_tokens_total") - before < ENDLESS["max_tokens"] / 2


async def test_requests_on_a_replica_that_dies_are_answered_by_the_next_one(service):
    undisturbed = service.ask(**LONG, logprobs=0).json()
    before = service.total("num_tokens_total")
    speaks = asyncio.Event()
    async with service.client() as client:
        client.timeout = RECOVERY_S
        asking = asyncio.create_task(client.post("/v1/reason", json=LONG))
        streaming = asyncio.create_task(read_all(service, LONG))
        chatting = asyncio.create_task(read_chat(service, speaks))
        await asyncio.to_thread(wait_for_tokens, service, before)
        await asyncio.wait_for(speaks.wait(), RECOVERY_S)
        service.kill_replica("deciders")
        response, messages, chunks = await asking, await streaming, await chatting
    for result in (response.json(), messages[-1].content, chunks[-1]["latentmas"]):
        assert result["agents"][-1]["text"] == undisturbed["final_answer"]
    for result in (response.json(), messages[-1].content):
        thinkers, deciders = result["stages"]
        assert (thinkers["attempts"], deciders["attempts"]) == (1, 2)
        assert "replica of group 'deciders' was lost" in deciders["failures"][0]
    deltas = [m.content["text"] for m in messages if m.name == "answer.delta"]
    assert "".join(deltas) == undisturbed["final_answer"]
    assert [m.content["stage"] for m in messages if m.name == "stage.retried"] == ["refiner+judger"]
    check_chat(chunks, undisturbed)
    service.wait_until(lambda: service.get("/readyz").status_code == 200, timeout_s=RECOVERY_S)


async def read_all(service, body):
    async with (
        service.client() as client,
        client.stream(
            "POST", "/v1/reason", json=body | {"stream": True}, timeout=RECOVERY_S
        ) as response,
    ):
        return [message async for message in events_of(response)]


async def read_chat(service, speaks):
    """The chunks of the same question in OpenAI's stream, with log-probabilities; ``speaks`` is set
    as soon as the client has the first words of the answer."""
    body = {
        "model": "latentmas/hierarchical",
        "messages": [{"role": "user", "content": LONG["question"]}],
        "max_tokens": LONG["max_tokens"],
        "temperature": 0,
        "logprobs": True,
        "stream": True,
        "latentmas": {"ignore_eos": True},
    }
    messages = []
    async with (
        service.client() as client,
        client.stream("POST", "/v1/chat/completions", json=body, timeout=RECOVERY_S) as response,
    ):
        async for line in response.aiter_lines():
            if line:
                messages.append(line.removeprefix("data: "))
            if len(messages) > 1:  # behind the one that says who speaks
                speaks.set()
    assert messages.pop() == "[DONE]"
    return [json.loads(message) for message in messages]


def check_chat(chunks, undisturbed):
    """Neither a gap nor anything twice, in the text and in the tokens."""
    choices = [chunk["choices"][0] for chunk in chunks]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    assert text == undisturbed["final_answer"]
    tokens = [
        token["bytes"]
        for choice in choices
        for token in (choice["logprobs"] or {"content": ()})["content"]
    ]
    assert tokens == [token["bytes"] for token in undisturbed["agents"][-1]["logprobs"]]
    assert len(tokens) == LONG["max_tokens"]
    assert choices[-1]["finish_reason"] == "length"
