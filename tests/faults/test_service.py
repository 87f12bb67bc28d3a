"""What else can befall a service: streams that are cut, full stores, an ingress that dies."""

import asyncio
from itertools import pairwise

import numpy as np
import psutil
import pytest
import ray
from ray import serve

from tests.deployments.service import Service, events_of
from tests.faults.nodes import STORE_BYTES, deploy, kill_9, make_args, replicas_of, wait_until_ready

pytestmark = [pytest.mark.serve, pytest.mark.slow]

RECOVERY_S = 120.0
NUM_STREAMS = 1000
NUM_CLIENTS = 10
NUM_BATCHES = 5
# 80 kB a stream: less than the memory that one could leave behind.
MAX_GROWTH_BYTES = 16 * 2**20
GROUPS = [
    {"name": "thinkers", "agents": ["planner", "critic"], "num_cpus": 0.5},
    {"name": "deciders", "agents": ["refiner", "judger"], "num_cpus": 0.5},
]
BODY = {"question": "What is 17 times 3?", "temperature": 0, "max_tokens": 8}
ENDLESS = BODY | {"max_tokens": 8_000, "ignore_eos": True}


@pytest.fixture(scope="module")
def deployed(service, port, model):
    args = make_args(model, GROUPS)
    # oneDNN keeps a kernel for each number of rows that it has seen, and a pool takes memory when
    # it is first written to: let these be few, and that be small.
    args["engine"] |= {"max_num_batched_tokens": 32, "max_num_seqs": 16, "kv_cache_bytes": 2**23}
    deploy(args, port)
    wait_until_ready(service)
    return service


@pytest.fixture(autouse=True)
def _left_idle(deployed):
    yield
    deployed.wait_until_idle(timeout_s=RECOVERY_S)


async def leave(client, name):
    """Read a stream up to the first event of that name, then hang up."""
    async with client.stream("POST", "/v1/reason", json=ENDLESS | {"stream": True}) as response:
        async for message in events_of(response):
            if message.name == name:
                return
    raise AssertionError(f"the stream ended without {name}: {message}")


async def leave_many(service, num_streams):
    places = asyncio.Semaphore(NUM_CLIENTS)
    names = ("agent.started", "agent.thought", "agent.finished", "answer.delta")

    async def leave_one(client, number):
        async with places:
            await leave(client, names[number % len(names)])

    async with service.client() as client:
        await asyncio.gather(*(leave_one(client, number) for number in range(num_streams)))


def resident_bytes(processes):
    return sum(psutil.Process(process.pid).memory_info().rss for process in processes)


async def test_a_thousand_cancelled_streams_leave_memory_and_blocks_as_they_were(deployed):
    processes = [p for group in ("thinkers", "deciders", "Ingress") for p in replicas_of(group)]
    sizes = []
    for _ in range(NUM_BATCHES):
        await leave_many(deployed, NUM_STREAMS // NUM_BATCHES)
        deployed.wait_until_idle()
        sizes.append(resident_bytes(processes))
    # Caches and pools fill up for a while; what leaks grows with every batch.
    growth = [after - before for before, after in pairwise(sizes)]
    assert growth[-1] < MAX_GROWTH_BYTES, f"{[round(n / 2**20) for n in growth]} MiB more"
    assert deployed.total("num_failed_health_checks_total") == 0
    # No replica was replaced, so these are the counts of all the time.
    now = [p for group in ("thinkers", "deciders", "Ingress") for p in replicas_of(group)]
    assert now == processes
    statuses = serve.status().applications[Service.NAME].deployments.values()
    assert {status.status for status in statuses} == {"HEALTHY"}


async def test_answers_are_given_while_the_object_stores_are_full(deployed):
    expected = deployed.ask(**BODY).json()["final_answer"]
    tenth = np.zeros(STORE_BYTES // 10, dtype=np.uint8)
    held = [ray.put(tenth) for _ in range(12)]  # more than the head's store: some are spilled
    held += [fill.options(resources={name: 0.001}).remote(STORE_BYTES) for name in ("a", "b")]
    await asyncio.to_thread(ray.wait, held, num_returns=len(held), timeout=RECOVERY_S)
    async with deployed.client() as client:
        asking = [client.post("/v1/reason", json=BODY) for _ in range(8)]
        responses = await asyncio.gather(*asking)
    assert {r.json().get("final_answer") for r in responses} == {expected}


@ray.remote(num_cpus=0)
def fill(num_bytes):
    return [ray.put(np.zeros(num_bytes // 10, dtype=np.uint8)) for _ in range(9)]


async def test_reader_that_is_slow_holds_nothing_up(deployed):
    """All of the answer is there long before it is read; its blocks are free by then."""
    body = BODY | {"max_tokens": 2000, "ignore_eos": True, "stream": True}
    async with deployed.client() as client, client.stream("POST", "/v1/reason", json=body) as slow:
        messages = events_of(slow)
        await anext(messages)
        await asyncio.to_thread(deployed.wait_until_idle, timeout_s=RECOVERY_S)
        async for message in messages:
            last = message
    assert last.name == "answer.done"


async def test_ingress_that_dies_takes_its_requests_along_and_nothing_else(deployed):
    before = deployed.total("num_tokens_total")
    async with deployed.client() as client:
        asking = asyncio.create_task(client.post("/v1/reason", json=ENDLESS))
        await asyncio.to_thread(
            deployed.wait_until,
            lambda: deployed.total("num_running") == 1,
            timeout_s=RECOVERY_S,
        )
        (ingress,) = replicas_of("Ingress")
        kill_9(ingress.pid)
        response = await asking
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
        assert "retry-after" in response.headers
    wait_until_ready(deployed)
    # Long before it would have been done.
    deployed.wait_until_idle(timeout_s=RECOVERY_S)
    assert deployed.total("num_tokens_total") - before < ENDLESS["max_tokens"] / 2
    assert deployed.ask(**BODY).status_code == 200
