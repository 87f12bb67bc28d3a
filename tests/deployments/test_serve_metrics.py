"""Every metric moves on a real cluster, read where Prometheus reads it."""

import asyncio
import re
import time
from collections import defaultdict

import httpx
import pytest
import ray

from deployments.metrics import METRICS, Kind
from tests.deployments.service import events_of
from tests.factories import make_tiny_model
from tests.lora.adapters import make_adapter

pytestmark = [pytest.mark.serve, pytest.mark.slow]

TIMEOUT_S = 120.0
POLL_S = 0.5
SHORT = {"question": "What is 17 times 3?", "max_tokens": 8, "temperature": 0}
LONG = SHORT | {"max_tokens": 500, "ignore_eos": True}
NUM_CROWD = 12
SAMPLE = re.compile(r"^(ray_latentmas_\w+)(?:\{.*\})? (\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def service(deploy, tmp_path_factory):
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
    """The largest value of each metric that was ever seen, over all its labels."""

    def __init__(self):
        (node,) = ray.nodes()
        self._url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
        self.largest = defaultdict(float)
        self.text = ""

    def scrape(self):
        self.text = httpx.get(self._url, timeout=TIMEOUT_S).text
        for name, value in SAMPLE.findall(self.text):
            self.largest[name] = max(self.largest[name], float(value))

    def still(self):
        """Metrics that have not moved."""
        return sorted(metric.name for metric in METRICS if not self.largest[moving_name(metric)])


def moving_name(metric):
    return metric.exported_name + ("_count" if metric.kind is Kind.HISTOGRAM else "")


async def test_each_metric_moves(service):
    scraper = Scraper()
    service.stream(**SHORT)
    service.ask(
        **SHORT | {"pipeline": "parallel", "latent_steps": 100, "on_expert_failure": "continue"}
    )
    async with service.client() as client:
        client.timeout = TIMEOUT_S
        crowd = ask_many(client)
        # Its replica dies in the midst of an answer.
        lost = asyncio.create_task(lose_replica(service, client))
        deadline = time.monotonic() + TIMEOUT_S
        while scraper.still() and time.monotonic() < deadline:
            await asyncio.to_thread(scraper.scrape)
            await asyncio.sleep(POLL_S)
            if all(asked.done() for asked in crowd):  # gauges are looked at now and then only
                crowd += ask_many(client)
        responses = await asyncio.gather(*crowd)
        await lost
    assert {response.status_code for response in responses} == {200}
    assert scraper.still() == []
    assert 'status="done"' in scraper.text
    assert SHORT["question"] not in scraper.text


def ask_many(client):
    return [
        asyncio.create_task(client.post("/v1/reason", json=LONG | {"adapters": {"judger": one}}))
        for one in ("first", "second") * (NUM_CROWD // 2)
    ]


async def lose_replica(service, client):
    body = LONG | {"stream": True}
    async with client.stream("POST", "/v1/reason", json=body) as response:
        is_killed = False
        async for message in events_of(response):
            if message.name == "answer.delta" and not is_killed:
                is_killed = True
                await asyncio.to_thread(service.kill_replica, "deciders")
    assert is_killed
    assert message.name == "answer.done"
