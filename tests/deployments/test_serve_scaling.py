"""Replicas follow the load, seen on Serve's REST API, and no request fails meanwhile."""

import asyncio
import time
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.deployments.dashboard_cluster import DashboardCluster
from tests.deployments.service import Service
from tests.factories import make_tiny_model
from tests.ports import free_port

pytestmark = [pytest.mark.serve, pytest.mark.own_cluster, pytest.mark.slow]

SCALING = {"target_ongoing_requests": 2, "upscale_delay_s": 1, "downscale_delay_s": 3}
SCALING |= {"interval_s": 0.5}
CHANGE_S = 120.0
POLL_S = 0.1
# One that lasts long enough to be seen by whoever counts requests.
LONG = {"question": "What is 17 times 3?", "temperature": 0, "max_tokens": 300, "ignore_eos": True}
RARE = LONG | {"pipeline": "rare", "max_tokens": 8}


@pytest.fixture(scope="module")
def cluster():
    with DashboardCluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def service():
    with Service(free_port()) as service:
        yield service


@pytest.fixture(scope="module")
def deploy(cluster, service, tmp_path_factory):
    """Deploys groups as ``serve deploy`` does; waits until the application runs."""
    model = make_tiny_model(tmp_path_factory.mktemp("tiny"), "qwen2", max_position_embeddings=16384)
    engine = {"model_name": str(model), "device": "cpu", "dtype": "float32"}
    engine |= {"kv_cache_bytes": 2**26, "max_num_seqs": 4}

    def deploy_groups(groups, **application):
        pipelines = [
            {"name": group["name"], "nodes": [{"name": group["agents"][0]}]} for group in groups
        ]
        args = {"engine": engine, "latent_steps": 2, "groups": groups, "pipelines": pipelines}
        cluster.deploy(
            {
                "proxy_location": "HeadOnly",
                "http_options": {"host": "127.0.0.1", "port": service.port},
                "applications": [
                    {
                        "name": Service.NAME,
                        "route_prefix": "/",
                        "import_path": "deployments.app:build_app",
                        "args": args,
                    }
                    | application
                ],
            }
        )
        names = {group["name"] for group in groups}
        service.wait_until(
            lambda: _runs(cluster.application(Service.NAME), names),
            timeout_s=CHANGE_S,
            says=lambda: cluster.application(Service.NAME),
        )

    return deploy_groups


def _runs(application, groups):
    return application.get("status") == "RUNNING" and groups < set(application["deployments"])


@pytest.fixture(scope="module")
def scaled(deploy, cluster):
    busy = {"name": "busy", "agents": ["judger"], "num_cpus": 0.5}
    busy |= {"scaling": SCALING | {"min_replicas": 1, "max_replicas": 2}}
    rare = {"name": "rare", "agents": ["math"], "num_cpus": 0.5}
    rare |= {"scaling": SCALING | {"min_replicas": 0, "max_replicas": 1}}
    deploy([busy, rare])
    return cluster


class Load:
    """Keeps ``num_clients`` asking one after the other; remembers every answer."""

    def __init__(self, service, body):
        self.num_clients = 0
        self.answers = []
        self._service = service
        self._body = body

    @asynccontextmanager
    async def clients(self, number):
        """Within, that many ask; at the end everyone has an answer."""
        is_over = asyncio.Event()
        async with httpx.AsyncClient(base_url=self._service.url, timeout=CHANGE_S) as http:
            asking = [asyncio.create_task(self._ask(http, is_over)) for _ in range(number)]
            try:
                yield
            finally:
                is_over.set()
                await asyncio.gather(*asking)

    async def _ask(self, http, is_over):
        while not is_over.is_set():
            response = await http.post("/v1/reason", json=self._body)
            self.answers.append((response.status_code, response.json().get("final_answer")))


async def see(cluster, group, number):
    """Wait until the REST API shows that many running replicas; the numbers seen on the way."""
    seen = []
    deadline = time.monotonic() + CHANGE_S
    while not seen or seen[-1] != number:
        assert time.monotonic() < deadline, f"{group}: {seen}, not {number} within {CHANGE_S} s"
        replicas = await asyncio.to_thread(cluster.replicas, Service.NAME, group)
        if not seen or replicas != seen[-1]:
            seen.append(replicas)
        await asyncio.sleep(POLL_S)
    return seen


async def test_group_grows_under_load_and_shrinks_behind_it_without_a_failed_request(
    scaled, service
):
    load = Load(service, LONG | {"pipeline": "busy"})
    assert await see(scaled, "busy", 1) == [1]
    async with load.clients(6):
        assert await see(scaled, "busy", 2) == [1, 2]
    # Someone goes on asking, so that the replica that ends has work to finish.
    async with load.clients(1):
        assert await see(scaled, "busy", 1) == [2, 1]
    assert len(load.answers) > 7
    assert len(set(load.answers)) == 1, "answers that failed, or differ"
    assert load.answers[0][0] == 200


async def test_group_starts_with_its_first_request_and_ends_when_nobody_asks(scaled, service):
    assert await see(scaled, "rare", 0) == [0]
    load = Load(service, RARE)
    async with load.clients(2):
        assert await see(scaled, "rare", 1) == [0, 1]
    assert await see(scaled, "rare", 0) == [1, 0]
    assert {status for status, _ in load.answers} == {200}
    async with load.clients(1):
        assert await see(scaled, "rare", 1) == [0, 1]
    assert len(set(load.answers)) == 1, "answers that failed, or differ"
    await see(scaled, "rare", 0)


async def test_group_at_zero_is_ready_and_is_not_woken_by_questions_about_it(scaled, service):
    await see(scaled, "rare", 0)
    for _ in range(3):
        assert service.get("/readyz").status_code == 200
        groups = service.stats()["groups"]
        assert (len(groups["busy"]), groups["rare"]) == (1, [])
        assert service.get("/v1/adapters").raise_for_status().json()["data"] == []
    details = scaled.application(Service.NAME)["deployments"]["rare"]
    assert details["target_num_replicas"] == 0
    assert {replica["state"] for replica in details["replicas"]} <= {"STOPPING"}


async def test_pipeline_policy_lets_the_groups_grow_together(deploy, cluster, service):
    def group(name, agent, max_replicas):
        scaling = SCALING | {"max_replicas": max_replicas, "target_ongoing_requests": 1}
        return {"name": name, "agents": [agent], "num_cpus": 0.5, "scaling": scaling}

    policy = {
        "policy_function": "cluster.autoscaling:PipelineRatioPolicy",
        "policy_kwargs": {"ratios": {"thinkers": 2, "deciders": 1}},
    }
    deploy(
        [group("thinkers", "math", 2), group("deciders", "judger", 1)], autoscaling_policy=policy
    )
    assert await see(cluster, "thinkers", 1) == [1]
    load = Load(service, LONG | {"pipeline": "deciders"})
    async with load.clients(2):
        assert await see(cluster, "thinkers", 2) == [1, 2]
    assert await see(cluster, "thinkers", 1) == [2, 1]
    assert len(set(load.answers)) == 1, "answers that failed, or differ"
