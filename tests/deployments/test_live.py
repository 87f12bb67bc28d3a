"""What may change while replicas run: validated, applied at once, and refused without harm."""

import pytest

from deployments.agent_group import AgentGroupServer
from deployments.args import AdaptersConfig
from deployments.group_setup import GroupSetup
from deployments.live import read_live_config
from deployments.messages import AdapterOrder, StageCall, StageMade
from latentmas_core.agents.config import AgentConfig
from latentmas_core.config import EngineConfig
from latentmas_core.engine.engine import Engine
from latentmas_core.errors import AdapterError, ConfigError, NotFoundError
from latentmas_core.events import AgentFinished
from latentmas_core.lora.library import AdapterSource
from latentmas_core.pipelines.plan import plan
from latentmas_core.pipelines.spec import PipelineSpec
from latentmas_core.pipelines.stage_worker import Roster
from latentmas_core.request import ReasonRequest
from tests.lora.adapters import make_adapter

SPEC = PipelineSpec.chain("pair", ["planner", "judger"])
ROSTER = Roster(
    {"planner": AgentConfig.planner(temperature=0), "judger": AgentConfig.judger(temperature=0)}, 3
)
STAGE = plan(SPEC, dict.fromkeys(SPEC.agents, "one")).stages[0]


@pytest.fixture(scope="module")
def engine_config(tiny_qwen2):
    return EngineConfig(
        model_name=str(tiny_qwen2),
        device="cpu",
        dtype="float32",
        kv_cache_bytes=2**24,
        max_latent_steps=16,
        num_threads=1,
    )


@pytest.fixture(scope="module")
def engine(engine_config):
    with Engine(engine_config) as engine:
        yield engine


@pytest.fixture
async def server(engine, engine_config):
    server = AgentGroupServer(engine, GroupSetup(engine_config, ROSTER))
    await server.start()
    return server


@pytest.fixture(scope="module")
def adapter(tiny_qwen2, tmp_path_factory):
    return make_adapter(tmp_path_factory.mktemp("adapters") / "mine", tiny_qwen2, rank=4)


async def ask(server, **fields):
    """Traces by agent of one stage with a planner and a judger."""
    request = ReasonRequest(question="Why?", ignore_eos=True, **fields)
    messages = [m async for m in server.run_stage(StageCall(STAGE, None, (), request))]
    assert isinstance(messages[-1], StageMade), messages[-1]
    return {m.agent: m.trace for m in messages if isinstance(m, AgentFinished)}


async def test_agents_latent_steps_and_adapters_change_at_once(server, adapter):
    before = await ask(server)
    assert (before["planner"].latent_steps, before["judger"].completion_tokens) == (3, 500)
    await server.reconfigure(
        {
            "latent_steps": 5,
            "agents": {"judger": {"max_tokens": 4, "adapter": "mine"}},
            "adapters": {"load": [{"name": "mine", "path": str(adapter)}]},
        }
    )
    after = await ask(server)
    assert (after["planner"].latent_steps, after["judger"].completion_tokens) == (5, 4)
    assert (after["planner"].adapter, after["judger"].adapter) == ("base", "mine")
    assert (await server.stats())["config_error"] is None


async def test_next_config_starts_from_the_args_and_not_from_the_last_one(server):
    await server.reconfigure({"latent_steps": 5, "agents": {"judger": {"max_tokens": 4}}})
    await server.reconfigure({"agents": {"judger": {"max_tokens": 6}}})
    traces = await ask(server)
    assert (traces["planner"].latent_steps, traces["judger"].completion_tokens) == (3, 6)


async def test_stage_under_way_keeps_its_agents(server):
    request = ReasonRequest(question="Why?", ignore_eos=True, max_tokens=4)
    messages = server.run_stage(StageCall(STAGE, None, (), request))
    await anext(messages)
    await server.reconfigure({"latent_steps": 9})
    traces = {m.agent: m.trace async for m in messages if isinstance(m, AgentFinished)}
    assert traces["planner"].latent_steps == 3


WRONG = [
    ({"agent": {}}, "unknown field 'agent'"),
    ({"latent_steps": -1}, "latent_steps got -1"),
    ({"latent_steps": 17}, "latent_steps is 17 for agent 'planner'; max_latent_steps"),
    ({"agents": {"poet": {}}}, "'poet', which this group does not host; it hosts planner, judger"),
    ({"agents": {"judger": {"temprature": 1}}}, "'judger': unknown field 'temprature'"),
    ({"agents": {"judger": {"temperature": 3}}}, "'judger': temperature got 3"),
    ({"agents": {"judger": {"name": "judge"}}}, "renames agent 'judger' to 'judge'"),
    ({"agents": {"judger": {"adapter": "nobody"}}}, "adapter 'nobody', which is not loaded"),
    ({"adapters": {"load": [{"name": "x", "path": "/nowhere"}]}}, "/nowhere"),
    ({"adapters": {"load": ["nobody"]}}, "'nobody'"),
]


@pytest.mark.parametrize(("user_config", "message"), WRONG, ids=lambda value: str(value)[:40])
async def test_wrong_config_changes_nothing_and_says_why(server, user_config, message):
    await server.reconfigure({"agents": {"judger": {"max_tokens": 4}}})
    await server.reconfigure(user_config)
    assert message in (await server.stats())["config_error"]
    assert (await ask(server))["judger"].completion_tokens == 4


@pytest.mark.parametrize(("user_config", "message"), WRONG, ids=lambda value: str(value)[:40])
async def test_replica_does_not_start_with_a_wrong_config(
    engine, engine_config, user_config, message
):
    server = AgentGroupServer(engine, GroupSetup(engine_config, ROSTER))
    with pytest.raises((ConfigError, AdapterError, NotFoundError)) as caught:
        await server.start(user_config)
    assert message in caught.value.message


NOWHERE = {"name": "x", "path": "/nowhere"}


def source(name, adapter, **fields):
    return {"name": name, "path": str(adapter), **fields}


def loading(*sources, **fields):
    return {"adapters": {"load": list(sources)}, **fields}


async def held(server):
    """Pinned or not, by name; what the engine has is what the replica says that it has."""
    listing = await server.adapters.listing()
    known = {spec.name for spec, _ in await server._engine.adapters()}
    held = {one.info.name: one.info.pinned for one in listing.loaded}
    assert held.keys() == known
    assert listing.by_group <= known
    return held, set(listing.by_group)


@pytest.fixture
async def alone(engine_config):
    """A replica whose engine no other test has loaded anything into."""
    with Engine(engine_config) as engine:
        server = AgentGroupServer(engine, GroupSetup(engine_config, ROSTER))
        await server.start()
        yield server


async def test_refused_config_leaves_no_adapter_behind(alone, adapter):
    mine = source("mine", adapter)
    for refused in (
        loading(mine, NOWHERE),
        loading(mine, agents={"judger": {"adapter": "nobody"}}),
    ):
        await alone.reconfigure(refused)
        assert (await alone.stats())["config_error"] is not None
        assert await held(alone) == ({}, set())


async def test_refused_config_leaves_the_adapters_of_the_last_one(alone, adapter):
    mine = source("mine", adapter)
    await alone.reconfigure(loading(mine))
    await alone.reconfigure(loading(source("other", adapter), mine | {"pinned": True}, NOWHERE))
    assert (await alone.stats())["config_error"] is not None
    assert await held(alone) == ({"mine": False}, {"mine"})


async def test_refused_config_does_not_bring_back_what_was_unloaded(alone, adapter):
    await alone.adapters.unload("mine")
    await alone.reconfigure(loading(source("mine", adapter), NOWHERE))
    assert (await alone.adapters.listing()).unloaded == {"mine"}
    await alone.reconfigure(loading(source("mine", adapter)))
    assert (await alone.adapters.listing()).unloaded == frozenset()


async def test_adapter_that_is_taken_out_of_the_config_goes(alone, adapter):
    await alone.reconfigure(loading(source("mine", adapter), source("other", adapter)))
    assert await held(alone) == ({"mine": False, "other": False}, {"mine", "other"})
    await alone.reconfigure(loading(source("other", adapter)))
    assert await held(alone) == ({"other": False}, {"other"})
    await alone.reconfigure({})
    assert await held(alone) == ({}, set())


async def test_adapter_that_the_args_or_a_client_loaded_too_is_theirs_again(engine_config, adapter):
    args = AdaptersConfig(load=[source("of_args", adapter)], roots=[adapter.parent])
    pinned = [source(name, adapter, pinned=True) for name in ("of_args", "of_client")]
    with Engine(engine_config) as engine:
        server = AgentGroupServer(engine, GroupSetup(engine_config, ROSTER, args))
        await server.start()
        of_client = AdapterSource(**source("of_client", adapter))
        await server.adapters.load(AdapterOrder(of_client, False, "order"))
        await server.reconfigure(loading(*pinned))
        assert await held(server) == (
            {"of_args": True, "of_client": True},
            {"of_args", "of_client"},
        )
        await server.reconfigure({})
        assert await held(server) == ({"of_args": False, "of_client": False}, set())


async def test_stage_under_way_keeps_an_adapter_that_is_taken_out_of_the_config(alone, adapter):
    """Also for its second agent, which begins after that."""
    agents = {"judger": {"adapter": "mine"}}
    await alone.reconfigure(loading(source("mine", adapter), agents=agents))
    request = ReasonRequest(question="Why?", ignore_eos=True, max_tokens=4)
    messages = alone.run_stage(StageCall(STAGE, None, (), request))
    await anext(messages)
    await alone.reconfigure({})
    assert [one.info.name for one in (await alone.adapters.listing()).loaded] == []
    traces = {m.agent: m.trace async for m in messages if isinstance(m, AgentFinished)}
    assert traces["judger"].adapter == "mine"
    assert await held(alone) == ({}, set())


async def test_right_config_takes_the_complaint_back(server):
    await server.reconfigure({"agents": {"poet": {}}})
    await server.reconfigure({})
    assert (await server.stats())["config_error"] is None


async def test_resident_adapters_of_a_group_are_pinned(engine_config, tiny_qwen2, adapter):
    sources = [{"name": "mine", "path": str(adapter)}]
    setup = GroupSetup(engine_config, ROSTER, AdaptersConfig(load=sources), ("mine",))
    with Engine(engine_config) as engine:
        server = AgentGroupServer(engine, setup)
        await server.start()
        (loaded,) = (await server.adapters.listing()).loaded
        assert loaded.info.pinned


def test_error_of_a_config_names_the_field():
    with pytest.raises(ConfigError) as caught:
        read_live_config({"latent_steps": "many"})
    assert caught.value.param == "latent_steps"
