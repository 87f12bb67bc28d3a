"""Calls on a real cluster go to the replica that holds their adapter, while it has room."""

import asyncio
from collections import Counter
from contextlib import aclosing

import pytest
from ray import serve

from deployments.messages import StageCall, StageMade
from deployments.transport import stream_stage
from latentmas_core.lora.library import AdapterSource
from latentmas_core.pipelines.plan import plan
from latentmas_core.pipelines.spec import PipelineSpec
from latentmas_core.request import ReasonRequest
from tests.deployments.service import Service
from tests.factories import make_tiny_model
from tests.lora.adapters import make_adapter

pytestmark = [pytest.mark.serve, pytest.mark.own_cluster]

GROUP = "deciders"
ALONE = PipelineSpec.chain("alone", ["judger"])
# Half of the batch: how many more calls a replica gets for what it holds.
MAX_NUM_SEQS, MAX_LEAD = 4, 2
STATS_S = 30.0


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The tiny model, and an adapter for each test."""
    model = make_tiny_model(tmp_path_factory.mktemp("tiny"), "qwen2", max_position_embeddings=16384)
    folder = tmp_path_factory.mktemp("adapters")
    names = ("law", "math")
    return model, {
        name: AdapterSource(name=name, path=str(make_adapter(folder / name, model, seed=seed)))
        for seed, name in enumerate(names)
    }


@pytest.fixture(scope="module")
def service(deploy, sources):
    model, adapters = sources
    engine = {"model_name": str(model), "device": "cpu", "dtype": "float32"}
    engine |= {"kv_cache_bytes": 2**26, "max_num_seqs": MAX_NUM_SEQS}
    group = {"name": GROUP, "agents": ["judger"], "num_replicas": 2, "num_cpus": 0.5}
    return deploy(
        {
            "engine": engine,
            "groups": [group],
            "pipelines": [ALONE.model_dump()],
            "adapters": {"load": [source.model_dump() for source in adapters.values()]},
        }
    )


@pytest.fixture
def handle(service):
    """A handle of ours, so that what its router knows can be looked at."""
    return serve.get_deployment_handle(GROUP, Service.NAME)


def residents(handle, adapter):
    """The replicas where the router of ``handle`` believes an adapter to be."""
    if not handle.is_initialized:
        return set()
    router = handle._router._asyncio_router.request_router
    return {
        replica.replica_id.unique_id
        for replica in router.curr_replicas.values()
        if adapter in replica.routing_stats.get("adapters", ())
    }


async def loaded_adapter(handle, name):
    """As the replicas tell of it."""
    (listing, *_) = await handle.broadcast("adapters").results_async()
    (adapter,) = (one for one in listing.loaded if one.info.name == name)
    return adapter


async def replica_of(handle, adapter, *, max_tokens=1):
    """Run the judger with an adapter; where it ran."""
    (stage,) = plan(ALONE, {"judger": GROUP}).stages
    request = ReasonRequest(
        question="What is 17 times 3?",
        pipeline=ALONE.name,
        adapters={"judger": adapter.info.name},
        max_tokens=max_tokens,
        ignore_eos=True,
        temperature=0,
    )
    call = StageCall(stage, None, (), request, (adapter,))
    async with aclosing(stream_stage(handle, call)) as messages:
        (made,) = [message async for message in messages if isinstance(message, StageMade)]
    return made.place.replica


async def first_replica_of(service, handle, adapter):
    """Use an adapter for the first time; returns when the router knows where."""
    name = adapter.info.name
    assert residents(handle, name) == set()
    replica = await replica_of(handle, adapter)
    await asyncio.to_thread(
        service.wait_until,
        lambda: residents(handle, name) == {replica},
        timeout_s=STATS_S,
        says=lambda: residents(handle, name),
    )
    return replica


async def test_calls_follow_their_adapter(service, handle):
    law = await loaded_adapter(handle, "law")
    replica = await first_replica_of(service, handle, law)
    places = [await replica_of(handle, law) for _ in range(10)]
    assert places == [replica] * 10
    loaded = [one["adapters"]["num_loaded"] for one in service.replicas()]
    assert sorted(loaded) == [0, 1]


async def test_calls_go_elsewhere_when_the_replica_with_their_adapter_is_busy(service, handle):
    math = await loaded_adapter(handle, "math")
    replica = await first_replica_of(service, handle, math)
    calls = [replica_of(handle, math, max_tokens=400) for _ in range(2 * MAX_NUM_SEQS)]
    places = await asyncio.gather(*calls)
    assert places[: MAX_LEAD + 1] == [replica] * (MAX_LEAD + 1)
    (other,) = set(places) - {replica}
    assert Counter(places)[other] > 1


async def test_calls_to_all_replicas_and_to_any_pass_the_router(service):
    assert service.get("/readyz").status_code == 200
    assert len(service.replicas()) == 2
    assert service.ask(question="Hello?", pipeline=ALONE.name, max_tokens=4).status_code == 200
