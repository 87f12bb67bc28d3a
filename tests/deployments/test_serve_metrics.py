"""Every metric moves on a real cluster, read where Prometheus reads it."""

import asyncio
import re
import time
from collections import defaultdict

import httpx
import pytest
import ray

from deployments.metrics import FAILED_ATTEMPTS, METRICS, Kind
from tests.deployments.service import events_of
from tests.factories import make_tiny_model
from tests.lora.adapters import make_adapter

pytestmark = [pytest.mark.serve, pytest.mark.own_cluster, pytest.mark.slow]

TIMEOUT_S = 120.0
POLL_S = 0.5
SHORT = {"question": "What is 17 times 3?", "max_tokens": 8, "temperature": 0}
LONG = SHORT | {"max_tokens": 500, "ignore_eos": True}
NUM_CROWD = 12
SAMPLE = re.compile(r"^((ray_latentmas_\w+)(?:\{.*\})?) (\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def scraper(serve_port):
    """Of what this module's application does: it is not deployed yet."""
    return Scraper()


@pytest.fixture(scope="module")
def service(scraper, deploy, tmp_path_factory):
    """Pools and places for adapters are too few for a crowd, and one expert cannot think long."""
    model = make_tiny_model(tmp_path_factory.mktemp("tiny"), "qwen2", max_position_embeddings=16384)
    adapters = tmp_path_factory.mktemp("adapters")
    load = [
        {"name": name, "path": str(make_adapter(adapters / name, model, seed=seed))}
        for seed, name in enumerate(("first", "second"))
    ]
    engine = {"model_name": str(model), "device": "cpu", "dtype": "float32"}
    engine |= {"kv_cache_bytes": 2**23, "lora": {"max_loaded_adapters": 1}}
    thinkers = {"name": "thinkers", "agents": ["planner", "critic", "medical", "coder"]}
    deciders = {
        "name": "deciders",
        "agents": ["refiner", "math", "judger"],
        "engine": {"max_latent_steps": 64},
    }
    return deploy(
        {
            "engine": engine,
            "latent_steps": 3,
            "groups": [thinkers, deciders],
            "adapters": {"load": load},
        }
    )


class Scraper:
    """The largest value of each metric that was ever seen, over all its labels.

    What is there at first is of the replicas of others, and does not count.
    """

    def __init__(self):
        (node,) = ray.nodes()
        self._url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
        self._largest = defaultdict(float)
        try:
            self._of_others = {series for series, _, _ in SAMPLE.findall(self._get())}
        except httpx.ConnectError:  # nothing was exported yet
            self._of_others = set()

    def scrape(self):
        self.text = self._get()
        for series, name, value in SAMPLE.findall(self.text):
            if series not in self._of_others:
                self._largest[name] = max(self._largest[name], float(value))

    def _get(self):
        return httpx.get(self._url, timeout=TIMEOUT_S).text

    def still(self):
        """Metrics that have not moved."""
        return {metric for metric in METRICS if not self._largest[moving_name(metric)]}

    async def scrape_until(self, is_enough):
        """As long as ``still`` is not enough, and in between whatever asks for more."""
        deadline = time.monotonic() + TIMEOUT_S
        await asyncio.to_thread(self.scrape)
        while not is_enough(self.still()):
            assert time.monotonic() < deadline, sorted(one.name for one in self.still())
            await asyncio.sleep(POLL_S)
            await asyncio.to_thread(self.scrape)


def moving_name(metric):
    return metric.exported_name + ("_count" if metric.kind is Kind.HISTOGRAM else "")


async def test_each_metric_moves(service, scraper):
    service.stream(**SHORT)
    service.ask(
        **SHORT | {"pipeline": "parallel", "latent_steps": 100, "on_expert_failure": "continue"}
    )
    async with service.client() as client:
        client.timeout = TIMEOUT_S
        has_moved = asyncio.Event()
        crowding = asyncio.create_task(crowd_until(has_moved, client))
        await scraper.scrape_until(lambda still: still <= {FAILED_ATTEMPTS} or crowding.done())
        has_moved.set()
        await crowding
        await lose_replica(service, client, scraper)
    assert scraper.still() == set()
    assert 'status="done"' in scraper.text
    assert SHORT["question"] not in scraper.text


async def crowd_until(has_moved, client):
    """One crowd after the other: gauges are looked at now and then only."""
    while not has_moved.is_set():
        adapters = [{"judger": name} for name in ("first", "second") * (NUM_CROWD // 2)]
        crowd = (client.post("/v1/reason", json=LONG | {"adapters": one}) for one in adapters)
        responses = await asyncio.gather(*crowd)
        assert {response.status_code for response in responses} == {200}


async def lose_replica(service, client, scraper):
    """In the midst of an answer, which is not waited for once it is known that it was lost."""
    body = LONG | {"stream": True}
    async with client.stream("POST", "/v1/reason", json=body) as response:
        async for message in events_of(response):
            if message.name == "answer.delta":
                await asyncio.to_thread(service.kill_replica, "deciders")
                await scraper.scrape_until(lambda still: FAILED_ATTEMPTS not in still)
                return
    raise AssertionError("the stream ended without an answer")
