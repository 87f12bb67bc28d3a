"""``pipeline="auto"`` over HTTP, down to engines in groups of this process, without Ray."""

import json

import pytest
from pydantic import ValidationError

from deployments.api.adapters import AdapterAdmin
from deployments.api.openai.models import ChatModels
from deployments.args import AdaptersConfig, AppArgs
from deployments.budget import TransferBudget
from deployments.ingress import build_http_app
from deployments.reasoner import Reasoner
from latentmas_core.engine.engine import Engine
from tests.deployments.http_calls import ask, assert_error
from tests.deployments.keys import client_of
from tests.deployments.local_groups import LocalTransport, make_servers
from tests.deployments.sse import parse_events

GROUPS = [
    {"name": "thinkers", "agents": ["planner", "critic", "medical"]},
    {"name": "deciders", "agents": ["refiner", "math", "judger"]},
]
MEDICAL = "Which antibiotic is given for pneumonia?"
MIXED = "A patient needs 5 mg of insulin per 10 kg; calculate the dosage: 5 * 72 / 10 = ?"
CODE = "Why does my Python function raise a KeyError?"
SHORT = {"pipeline": "auto", "temperature": 0, "max_tokens": 3}


@pytest.fixture(scope="module")
def args(tiny_qwen2):
    engine = {"model_name": str(tiny_qwen2), "device": "cpu", "dtype": "float32"}
    engine |= {"kv_cache_bytes": 2**24, "num_threads": 1}
    return AppArgs(engine=engine, groups=GROUPS, latent_steps=2)


@pytest.fixture(scope="module")
def engines(args):
    engines = {group.name: Engine(args.engine_of(group)) for group in args.groups}
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.fixture
async def client(args, engines, monkeypatch):
    monkeypatch.setattr("deployments.runner.stream_stage", LocalTransport().stream_stage)
    reasoner = Reasoner(args, make_servers(args, engines), TransferBudget(2**30))
    admin = AdapterAdmin(AdaptersConfig(), args.engine.model_name)
    async with client_of(build_http_app(reasoner, admin, ChatModels.of(args))) as client:
        yield client


async def test_expert_answers_and_the_body_says_why(client):
    body = (await ask(client, question=MEDICAL, **SHORT)).json()
    assert [agent["name"] for agent in body["agents"]] == ["medical", "judger"]
    assert body["pipeline"] == body["routing"]["pipeline"] == "auto.medical"
    assert body["routing"]["domain"] == "medical"
    assert body["transfer"]["hops"] == 1


async def test_experts_of_several_domains_are_merged(client):
    body = (await ask(client, question=MIXED, **SHORT)).json()
    assert [agent["name"] for agent in body["agents"]] == ["medical", "math", "judger"]
    assert body["pipeline"] == "auto.medical.math"


async def test_expert_that_no_group_hosts_is_done_without(client):
    body = (await ask(client, question=CODE, **SHORT)).json()
    assert (body["pipeline"], body["routing"]["domain"]) == ("hierarchical", "code")
    assert "coder would fit, but is not there" in body["routing"]["reason"]


async def test_decision_is_the_first_event_of_a_stream(client):
    response = await ask(client, question=MEDICAL, stream=True, **SHORT)
    first, second, *_, last = parse_events(response.text)
    assert (first.name, second.name, last.name) == (
        "routing.decided",
        "stage.started",
        "answer.done",
    )
    assert first.content["routing"] == last.content["routing"]


async def test_pipeline_that_is_named_has_no_routing(client):
    body = (await ask(client, question=MEDICAL, max_tokens=3)).json()
    assert (body["pipeline"], body["routing"]) == ("hierarchical", None)


async def test_openais_clients_ask_the_model_auto(client):
    assert (await client.get("/v1/models/latentmas/auto")).json()["id"] == "latentmas/auto"
    body = {"model": "latentmas/auto", "messages": [{"role": "user", "content": MEDICAL}]}
    answer = (await client.post("/v1/chat/completions", json=body | {"max_tokens": 3})).json()
    assert answer["latentmas"]["routing"]["experts"] == ["medical"]
    text = (
        await client.post("/v1/chat/completions", json=body | {"max_tokens": 3, "stream": True})
    ).text
    _, told, *_ = (json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {"))
    assert told["latentmas"]["event"] == "routing.decided"
    assert told["latentmas"]["routing"] == answer["latentmas"]["routing"]


async def test_adapter_of_an_agent_that_does_not_exist_is_refused(client):
    response = await ask(client, question=MEDICAL, adapters={"poet": "mine"}, **SHORT)
    assert "'poet'" in assert_error(response, 404, code="not_found", param="adapters")


async def test_unknown_pipeline_is_told_of_auto_too(client):
    response = await ask(client, pipeline="diagonal")
    assert "auto" in assert_error(response, 404, code="not_found", param="pipeline")


def test_no_pipeline_may_be_declared_by_that_name(args):
    declared = {"name": "auto", "nodes": [{"name": "planner"}]}
    with pytest.raises(ValidationError, match=r"pipelines\[0\].name: pipeline 'auto' stands for"):
        AppArgs(engine=args.engine, groups=GROUPS, pipelines=[declared])
