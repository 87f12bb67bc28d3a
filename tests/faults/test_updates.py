"""Agents change while replicas run: no request is dropped, no replica is started anew."""

import asyncio

import pytest

from tests.faults.nodes import deploy, make_args, replicas_of, wait_until_ready

pytestmark = [pytest.mark.serve, pytest.mark.slow]

CHANGE_S = 60.0
NUM_AT_WORK = 12
BODY = {"question": "What is 17 times 3?", "temperature": 0, "ignore_eos": True}
LONG = BODY | {"max_tokens": 1500}
# Longer in the new config than in the old one, which is the preset's.
NEW = {"latent_steps": 7, "agents": {"judger": {"max_tokens": 5}}}


@pytest.fixture(scope="module")
def args(model):
    agents = ["planner", "critic", "refiner", "judger"]
    return make_args(model, [{"name": "all", "agents": agents, "num_cpus": 0.5}])


@pytest.fixture(scope="module")
def deployed(service, port, args):
    deploy(args, port)
    wait_until_ready(service)
    return service


def did(response):
    """Latent steps of the planner and tokens of the judger."""
    planner, *_, judger = response.json()["agents"]
    return planner["latent_steps"], judger["completion_tokens"]


async def test_update_is_applied_in_place_and_drops_nothing(deployed, port, args):
    assert did(deployed.ask(**BODY)) == (3, 500)
    processes = replicas_of("all")
    async with deployed.client() as client:
        client.timeout = CHANGE_S
        working = [
            asyncio.create_task(client.post("/v1/reason", json=LONG)) for _ in range(NUM_AT_WORK)
        ]
        await asyncio.to_thread(
            deployed.wait_until,
            lambda: deployed.total("num_running") == NUM_AT_WORK,
            timeout_s=CHANGE_S,
        )
        await asyncio.to_thread(deploy, args, port, {"all": NEW})
        await asyncio.to_thread(
            deployed.wait_until,
            lambda: did(deployed.ask(**BODY)) == (7, 5),
            timeout_s=CHANGE_S,
        )
        responses = await asyncio.gather(*working)
    assert {response.status_code for response in responses} == {200}
    assert {did(response) for response in responses} == {(3, 1500)}
    assert replicas_of("all") == processes
    told = {agent["name"]: agent for agent in deployed.get("/v1/agents").json()["data"]}
    assert (told["planner"]["latent_steps"], told["judger"]["max_tokens"]) == (7, 5)
    deployed.wait_until_idle()


def test_wrong_update_is_told_and_the_service_goes_on(deployed, port, args):
    processes = replicas_of("all")
    deploy(args, port, {"all": {"agents": {"judger": {"temprature": 1}}}})

    def errors():
        return [replica["config_error"] for replica in deployed.replicas()]

    # While a replica takes its config it is not asked.
    deployed.wait_until(
        lambda: ["temprature" in (error or "") for error in errors()] == [True],
        timeout_s=CHANGE_S,
        says=errors,
    )
    assert deployed.ask(**BODY).status_code == 200
    assert replicas_of("all") == processes
    deploy(args, port, {"all": NEW})
    deployed.wait_until(lambda: errors() == [None], timeout_s=CHANGE_S, says=errors)
    assert did(deployed.ask(**BODY)) == (7, 5)
