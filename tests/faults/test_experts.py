"""Three experts on three replicas really work at the same time, and their merge is exact."""

import pytest

from deployments.args import AppArgs
from latentmas_core.request import ReasonRequest
from latentmas_core.system import LatentMASSystem
from tests.faults.nodes import deploy, make_args, wait_until_ready

pytestmark = [pytest.mark.serve, pytest.mark.own_cluster, pytest.mark.slow]

EXPERTS = ("medical", "math", "coder")
REQUEST = {
    "question": "What is 17 times 3?",
    "pipeline": "parallel",
    "latent_steps": 100,
    "max_tokens": 16,
    "temperature": 0,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def args(model):
    groups = [
        {"name": f"{agent}-group", "agents": [agent], "num_cpus": 0.25}
        for agent in (*EXPERTS, "judger")
    ]
    return make_args(model, groups)


@pytest.fixture(scope="module")
def deployed(service, port, args):
    deploy(args, port)
    wait_until_ready(service)
    return service


def busy_of(agent):
    return agent["started_at"], agent["started_at"] + agent["latency_ms"] / 1000


def test_experts_are_busy_at_the_same_time(deployed):
    result = deployed.ask(**REQUEST).json()
    busy = [busy_of(agent) for agent in result["agents"] if agent["name"] in EXPERTS]
    assert len(busy) == len(EXPERTS)
    assert max(start for start, _ in busy) < min(end for _, end in busy)
    judger = result["agents"][-1]
    assert judger["started_at"] >= max(end for _, end in busy)


def test_each_expert_runs_on_a_replica_of_its_own_and_hands_its_memory_over(deployed):
    *experts, judger = deployed.ask(**REQUEST).json()["stages"]
    assert len({stage["replica"] for stage in (*experts, judger)}) == 4
    assert all(stage["bytes_in"] == 0 for stage in experts)
    assert judger["bytes_in"] == sum(stage["bytes_out"] for stage in experts) > 0


@pytest.mark.parametrize("merge", ["reused", "consecutive"])
@pytest.mark.parametrize("handoff", ["kv", "embeddings"])
def test_answer_is_that_of_one_process_with_the_same_merge(deployed, args, merge, handoff):
    body = REQUEST | {"merge": merge, "handoff": handoff}
    config = AppArgs.model_validate(args)
    with LatentMASSystem(engine_config=config.engine_of(config.groups[0])) as system:
        local = system.add_default_agents().run(**ReasonRequest(**body).model_dump())
    assert deployed.ask(**body).json()["final_answer"] == local.final_answer
