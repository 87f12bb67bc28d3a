"""Which adapters a stage is sent, and what becomes of it when they are unloaded; without Ray."""

from contextlib import aclosing

import pytest

from deployments.args import AppArgs
from deployments.budget import TransferBudget
from deployments.messages import StageFailed, StageMade
from deployments.reasoner import Reasoner
from latentmas_core.engine.engine import Engine
from latentmas_core.errors import NotFoundError
from latentmas_core.events import AgentFinished
from latentmas_core.lora.library import AdapterSource
from latentmas_core.request import ReasonRequest
from latentmas_core.system import LatentMASSystem
from tests.deployments.local_groups import LocalTransport, make_servers
from tests.deployments.wire import send
from tests.engine.engines import assert_nothing_left
from tests.lora.adapters import make_adapter

GROUPS = [
    {"name": "thinkers", "agents": ["planner", "critic"]},
    {"name": "deciders", "agents": ["refiner", "judger"]},
]
THREE_GROUPS = [
    {"name": "thinkers", "agents": ["planner", "medical"]},
    {"name": "critics", "agents": ["critic", "coder"]},
    {"name": "deciders", "agents": ["refiner", "math", "judger"]},
]
CHOSEN = {"planner": "first", "refiner": "second"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_qwen2):
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: make_adapter(folder / name, tiny_qwen2, rank=4, seed=seed)
        for seed, name in enumerate(("first", "second"))
    }


@pytest.fixture
def groups():
    return GROUPS


@pytest.fixture
def args(tiny_qwen2, groups):
    engine = {
        "model_name": str(tiny_qwen2),
        "device": "cpu",
        "dtype": "float32",
        "kv_cache_bytes": 2**25,
        "num_threads": 1,
    }
    return AppArgs(engine=engine, groups=groups, latent_steps=2)


@pytest.fixture
async def servers(args):
    """Fails the test if a stage leaves anything but adapters."""
    engines = {group.name: Engine(args.engine_of(group)) for group in args.groups}
    yield make_servers(args, engines)
    for engine in engines.values():
        await assert_nothing_left(engine)
        engine.close()


@pytest.fixture
async def reasoner(args, servers, folders, monkeypatch):
    """Both adapters are loaded; ``calls`` are the stages that were sent."""

    async def ask(server, method, *arguments):
        methods = {"adapters": "listing", "load_adapter": "load", "unload_adapter": "unload"}
        return [send(await getattr(server.adapters, methods[method])(*arguments))]

    transport = LocalTransport()
    calls = []

    def stream_stage(server, call):
        calls.append(call)
        return transport.stream_stage(server, call)

    monkeypatch.setattr("deployments.adapters.ask_all_replicas", ask)
    monkeypatch.setattr("deployments.runner.stream_stage", stream_stage)
    reasoner = Reasoner(args, servers, TransferBudget(2**30))
    reasoner.calls = calls
    for name, folder in folders.items():
        source = AdapterSource(name=name, path=str(folder))
        await reasoner.adapters.load(source, is_operators=True)
    return reasoner


def make_request(**fields):
    defaults = {"question": "Why?", "temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
    return ReasonRequest.model_validate(defaults | fields)


def names_of(calls):
    return {call.stage.name: list(call.digests) for call in calls}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"planner+critic": ["first"], "refiner+judger": ["second"]}),
        ({"handoff": "text"}, {"planner+critic": ["first"], "refiner+judger": ["second"]}),
        # Whoever prefills the embeddings of a thought needs the adapter that made it.
        (
            {"handoff": "embeddings"},
            {"planner+critic": ["first"], "refiner+judger": ["first", "second"]},
        ),
        ({"mode": "single"}, {"judger": []}),
    ],
    ids=str,
)
async def test_stage_is_sent_the_adapters_that_it_computes_with(
    reasoner, servers, args, folders, fields, expected
):
    request = make_request(adapters=CHOSEN, **fields)
    for server in servers.values():  # replicas that have nothing yet
        for name in folders:
            await server.adapters._drop(name)
    served = await reasoner.reason(request)
    assert names_of(reasoner.calls) == expected
    config = args.engine_of(args.groups[0])
    with LatentMASSystem(engine_config=config, latent_steps=2) as system:
        system.add_default_agents()
        for name, folder in folders.items():
            system.load_external_lora(name, folder)
        assert (await system.arun(**request.model_dump())).final_answer == served.final_answer


@pytest.mark.parametrize("groups", [THREE_GROUPS], ids=["three groups"])
@pytest.mark.parametrize("pipeline", ["sequential", "parallel"])
async def test_adapters_that_only_a_groups_own_config_names_follow_the_embeddings(
    reasoner, servers, args, tiny_qwen2, tmp_path, pipeline
):
    """Whoever prefills a thought again loads what made it, though the ingress never heard of it."""
    own = {"planner": "p", "medical": "p", "critic": "c", "coder": "c"}
    adapters = {
        name: make_adapter(tmp_path / name, tiny_qwen2, rank=4, seed=seed)
        for name, seed in (("p", 7), ("c", 8))
    }
    for group, name in (("thinkers", "p"), ("critics", "c")):
        agents = args.groups[0 if name == "p" else 1].agents
        load = [{"name": name, "path": str(adapters[name]), "pinned": True}]
        await servers[group].reconfigure(
            {"adapters": {"load": load}, "agents": {one: {"adapter": name} for one in agents}}
        )
        assert (await servers[group].stats())["config_error"] is None
    request = make_request(pipeline=pipeline, handoff="embeddings")
    served = await reasoner.reason(request)
    read = reasoner.calls[-1].memory
    assert {one.info.name for one in read.adapters} == {"p", "c"}
    decider = {one.info.name: one for one in (await servers["deciders"].adapters.listing()).loaded}
    assert not decider["p"].info.pinned
    config = args.engine_of(args.groups[0])
    with LatentMASSystem(engine_config=config, latent_steps=2) as system:
        system.add_default_agents()
        for name, folder in adapters.items():
            system.load_external_lora(name, folder)
        alone = await system.arun(**request.model_dump() | {"adapters": own_of(own, served)})
    assert alone.final_answer == served.final_answer


def own_of(adapter_of, served):
    """The adapters of the agents that took part."""
    agents = {agent.name for agent in served.agents}
    return {agent: name for agent, name in adapter_of.items() if agent in agents}


async def test_mode_single_does_not_ask_for_adapters_of_others(reasoner):
    request = make_request(mode="single", adapters={"planner": "nobody", "judger": "first"})
    result = await reasoner.reason(request)
    assert [agent.adapter for agent in result.agents] == ["first"]
    with pytest.raises(NotFoundError, match="'nobody'"):
        await reasoner.check(make_request(mode="single", adapters={"judger": "nobody"}))
    with pytest.raises(NotFoundError, match="coder"):
        await reasoner.check(make_request(mode="single", adapters={"coder": "first"}))


async def test_later_stage_whose_adapter_was_unloaded_fails_by_name(reasoner, servers):
    """It neither answers with the base nor brings the adapter back."""

    async def unload_meanwhile():
        async with aclosing(reasoner.stream(make_request(adapters=CHOSEN))) as events:
            async for event in events:
                if isinstance(event, AgentFinished) and event.agent == "planner":
                    await reasoner.adapters.unload("second")

    with pytest.raises(NotFoundError, match="'second' was unloaded while the request"):
        await unload_meanwhile()
    assert [one["name"] for one in await reasoner.adapters.listing()] == ["first"]


async def test_stage_under_way_keeps_an_adapter_that_is_unloaded_to_its_end(reasoner, servers):
    """Also for its second agent, which begins after that."""
    request = make_request(adapters={"refiner": "first", "judger": "second"})
    await reasoner.reason(request)
    server, call = servers["deciders"], reasoner.calls[-1]
    undisturbed = [message async for message in server.run_stage(call)]
    messages = server.run_stage(call)
    seen = [await anext(messages)]
    for name in ("first", "second"):
        await reasoner.adapters.unload(name)
    seen += [message async for message in messages]
    assert isinstance(seen[-1], StageMade), seen[-1]
    assert texts(seen) == texts(undisturbed)
    refused = [message async for message in server.run_stage(call)]
    assert isinstance(refused[-1], StageFailed)
    assert await server._engine.adapters() == []
    assert (await server._engine.stats()).adapters.num_blocks == 0


def texts(messages):
    finished = [message for message in messages if isinstance(message, AgentFinished)]
    return [(message.trace.text, message.trace.adapter_digest) for message in finished]
