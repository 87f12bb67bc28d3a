"""What a replica tells the autoscaler and the router about its engine."""

import asyncio
from contextlib import aclosing

import pytest

from deployments.agent_group import AgentGroupServer
from deployments.group_setup import GroupSetup
from latentmas_core.agents.config import AgentConfig
from latentmas_core.pipelines.stage_worker import Roster
from tests.engine.engines import BLOCK_SIZE, assert_nothing_left, make_engine
from tests.engine.turns import create_turn
from tests.lora.adapters import make_adapter
from tests.lora.speaking import speak

NUM_BLOCKS = 500
JUDGER = AgentConfig.judger()


@pytest.fixture
async def engine(tiny_llama):
    with make_engine(tiny_llama, num_blocks=NUM_BLOCKS, max_num_seqs=1) as engine:
        yield engine
        await assert_nothing_left(engine)


@pytest.fixture
def server(engine):
    return AgentGroupServer(engine, GroupSetup(engine.config, Roster({"judger": JUDGER}, 2)))


async def test_idle_replica_needs_nothing_and_tells_its_capacity(server):
    assert await server.scaling_stats() == {
        "kv_tokens": 0,
        "kv_capacity_tokens": NUM_BLOCKS * BLOCK_SIZE,
        "num_waiting": 0,
    }


async def test_turns_that_wait_are_needs_as_those_that_run(engine, server):
    turns = [create_turn(max_tokens=400) for _ in range(3)]
    streams = [engine.run(turn) for turn in turns]
    async with aclosing(streams[0]), aclosing(streams[1]), aclosing(streams[2]):
        first = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await first[0]  # the first speaks, the others wait: a batch of one
        stats = await server.scaling_stats()
        for task in first:
            task.cancel()
        await asyncio.gather(*first, return_exceptions=True)
    assert stats["num_waiting"] == 2
    num_blocks, rest = divmod(stats["kv_tokens"], 3 * BLOCK_SIZE)
    assert rest == 0
    assert num_blocks * BLOCK_SIZE >= len(turns[0].prompt_ids)


async def test_adapters_on_the_device_are_told_by_name_and_are_no_pressure(
    engine, server, tiny_llama, tmp_path
):
    for seed, name in enumerate(("math", "law")):
        folder = make_adapter(tmp_path / name, tiny_llama, seed=seed)
        await engine.load_adapter(name, folder)
    before = await server.routing_stats()
    assert before == {"adapters": [], "free_blocks": NUM_BLOCKS}
    await speak(engine, "math")
    after = await server.routing_stats()
    assert after["adapters"] == ["math"]
    assert after["free_blocks"] < NUM_BLOCKS
    assert (await server.scaling_stats())["kv_tokens"] == 0
