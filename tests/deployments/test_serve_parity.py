"""The embedded model as it is served equals the embedded model in this process.

With the configuration of the repository, in fp32: its two groups hand memory to each other.
"""

from pathlib import Path

import pytest
import yaml

from deployments.args import AppArgs
from latentmas_core.system import LatentMASSystem

pytestmark = [pytest.mark.serve, pytest.mark.own_cluster]

REPO = Path(__file__).parents[2]
QUESTION = "What is the capital of France?"
OPTIONS = {"temperature": 0.0, "max_tokens": 16, "latent_steps": 4}
NUM_THINKERS = 3
HIDDEN_SIZE, BYTES_PER_NUMBER = 576, 4

CASES = {
    f"{pipeline}-{mode}": {"pipeline": pipeline, "mode": mode}
    for pipeline in ("hierarchical", "sequential", "parallel")
    for mode in ("latent", "text", "single")
} | {"hierarchical-embeddings": {"pipeline": "hierarchical", "handoff": "embeddings"}}


@pytest.fixture(scope="module")
def args():
    config = yaml.safe_load((REPO / "serve_config.yaml").read_text())
    (application,) = config["applications"]
    args = application["args"]
    return args | {"engine": args["engine"] | {"dtype": "float32"}}


@pytest.fixture(scope="module")
def expected(args, embedded_model_path):
    """The results of one process, which is gone before the service comes."""
    valid = AppArgs.model_validate(args)
    with LatentMASSystem(engine_config=valid.engine_of(valid.groups[0])) as system:
        system.add_default_agents()
        results = {name: system.run(QUESTION, **OPTIONS, **case) for name, case in CASES.items()}
        return results | {"lens": system.run(QUESTION, trace="lens", **OPTIONS)}


@pytest.fixture(scope="module")
def expected_lens(expected):
    return expected["lens"]


@pytest.fixture(scope="module")
def service(expected, args, deploy):
    return deploy(args)


@pytest.mark.parametrize("case", CASES)
def test_answer_over_http_is_the_answer_in_process(service, expected, case):
    *events, done = service.stream(question=QUESTION, **OPTIONS, **CASES[case])
    assert done.name == "answer.done"
    served, local = done.content, expected[case].model_dump(mode="json")
    assert served["final_answer"] == local["final_answer"]
    assert served["usage"] == local["usage"]
    assert served["finish_reason"] == local["finish_reason"]
    assert [without_time(agent) for agent in served["agents"]] == [
        without_time(agent) for agent in local["agents"]
    ]
    deltas = [event.content["text"] for event in events if event.name == "answer.delta"]
    assert "".join(deltas) == served["final_answer"]
    service.wait_until_idle()


def without_time(agent):
    timed = ("latency_ms", "started_at", "phases")
    return {key: value for key, value in agent.items() if key not in timed}


def test_whole_answer_equals_the_streamed_one(service, expected):
    response = service.ask(question=QUESTION, **OPTIONS)
    assert response.status_code == 200
    assert response.json()["final_answer"] == expected["hierarchical-latent"].final_answer


def test_lens_over_http_is_the_lens_in_process(service, expected_lens):
    streamed = service.stream(question=QUESTION, trace="lens", **OPTIONS)
    whole = service.ask(question=QUESTION, trace="lens", **OPTIONS).json()
    for result in (streamed[-1].content, whole):
        for agent, local in zip(result["agents"], expected_lens.agents, strict=True):
            assert len(agent["lens"]) == local.latent_steps
            assert_lens(agent["lens"], local.lens)
    for agent in expected_lens.agents:
        told = [
            message.content["lens"]
            for message in streamed
            if message.name == "agent.thought" and message.content["agent"] == agent.name
        ]
        assert_lens(told, agent.lens)


def assert_lens(served, local):
    for step, ours in zip(served, local, strict=True):
        assert step["index"] == ours.index
        assert step["norm"] == pytest.approx(ours.norm, rel=1e-3)
        assert [token["text"] for token in step["tokens"]] == [token.text for token in ours.tokens]
        assert [token["probability"] for token in step["tokens"]] == pytest.approx(
            [token.probability for token in ours.tokens], abs=1e-3
        )


def test_timeline_of_a_stream_has_one_clock_and_every_phase(service):
    messages = service.stream(question=QUESTION, **OPTIONS)
    times = [message.content["at_ms"] for message in messages]
    assert times == sorted(times)
    result = messages[-1].content
    for agent in result["agents"]:
        spent = agent["phases"]
        told = ["prefill", "thinking"] if agent["latent_steps"] else ["prefill", "speaking"]
        assert phases_of(messages, agent["name"]) == told
        assert all(spent[f"{phase}_ms"] > 0 for phase in told)
        assert sum(spent.values()) <= agent["latency_ms"]
    stages = [message.content for message in messages if message.name == "stage.finished"]
    assert [stage["trace"] for stage in stages] == result["stages"]
    assert stages[0]["trace"]["bytes_out"] == stages[1]["trace"]["bytes_in"] > 0
    assert all(stage["trace"]["replica"] for stage in stages)


def phases_of(messages, agent):
    events = [m.content for m in messages if m.name == "agent.phase"]
    return [event["phase"] for event in events if event["agent"] == agent]


def test_catalogue_tells_what_the_service_offers(service, args):
    pipelines = {entry["name"]: entry for entry in service.get("/v1/pipelines").json()["data"]}
    assert set(pipelines) == {"hierarchical", "parallel", "sequential", "chat"}
    assert [name for name, entry in pipelines.items() if entry["default"]] == ["hierarchical"]
    hosted = {agent for group in args["groups"] for agent in group["agents"]}
    agents = {entry["name"]: entry for entry in service.get("/v1/agents").json()["data"]}
    assert set(agents) == hosted | {"assistant"}
    assert agents["planner"]["latent_steps"] == args["latent_steps"]


def test_batch_is_answered_as_each_request_alone(service, expected):
    whole = {"question": QUESTION, **OPTIONS}
    cases = [CASES["hierarchical-latent"], CASES["parallel-text"], CASES["sequential-single"]]
    response = service.post("/v1/batch", requests=[whole | case for case in cases])
    answers = [item["result"]["final_answer"] for item in response.json()["results"]]
    names = ["hierarchical-latent", "parallel-text", "sequential-single"]
    assert answers == [expected[name].final_answer for name in names]
    service.wait_until_idle()


def test_memory_crosses_between_the_groups_and_embeddings_are_far_smaller(service):
    kv = service.ask(question=QUESTION, **OPTIONS).json()["transfer"]
    assert (kv["stages"], kv["hops"]) == (2, 1)
    embeddings = service.ask(question=QUESTION, handoff="embeddings", **OPTIONS).json()["transfer"]
    num_crossing = 2  # planner and critic; the refiner thinks where the judger answers
    assert embeddings["bytes"] == (
        num_crossing * OPTIONS["latent_steps"] * HIDDEN_SIZE * BYTES_PER_NUMBER
    )
    assert kv["bytes"] > 100 * embeddings["bytes"]


def test_those_who_think_write_nothing(service):
    result = service.ask(question=QUESTION, **OPTIONS).json()
    *thinkers, judger = result["agents"]
    assert [agent["completion_tokens"] for agent in thinkers] == [0] * NUM_THINKERS
    assert [agent["latent_steps"] for agent in thinkers] == [OPTIONS["latent_steps"]] * 3
    assert judger["completion_tokens"] > 0
