"""The engine computes what the plain loop computes, whatever shares its steps (fp32).

Eight chains of different lengths run at once, thinking and speaking in the same steps, prompts in
chunks. Keys, values and latents of every segment stay within 1e-4 of the plain loop run one chain
at a time; greedy answers are the same token for token.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from latentmas_core.engine.engine import Engine
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.latent.codec import PackedSegments, unpack
from tests.engine.engines import BLOCK_SIZE, OpenEngine
from tests.engine.oracle import (
    Agent,
    Chain,
    Oracle,
    Run,
    release_all,
    run_chain,
    run_chains,
)
from tests.engine.stepping import paused, record_steps, start_all

HandOver = Callable[[ResidentMemory], Awaitable[ResidentMemory]]

RULES = "You are one of several agents. "  # what the prompts share, for the prefix cache
# A random model amplifies rounding by about 1.6 with every latent step, so the steps are few.
CHAINS = [
    Chain((Agent(RULES + "Plan how to add 17 and 25.", 3), Agent("Answer.", 0)), max_tokens=9),
    Chain(
        (
            Agent(RULES + "Plan.", 2),
            Agent("Find what is wrong with the plan above, and say why.", 1),
            Agent("Mend it.", 3),
            Agent("What is the capital of France?", 0),
        ),
        max_tokens=12,
    ),
    Chain((Agent(RULES + "Think about primes below 30 and list them.", 4),)),
    Chain((Agent(RULES + "Name three colours.", 0),), max_tokens=14),
    Chain((Agent("Say hello.", 2),), max_tokens=11),
    Chain((Agent(RULES + "Write.", 1), Agent("A function that adds two numbers.", 3))),
    Chain((Agent("Hi", 0), Agent("Why?", 1), Agent("Because", 0)), max_tokens=10),
    Chain((Agent(RULES + "Count to ten, slowly, one word per line, please.", 0),), max_tokens=13),
]

SLOW_MODEL = "embedded_model_path"
MODELS = ["tiny_llama", "tiny_qwen2", "tiny_qwen3", SLOW_MODEL]


class Case(NamedTuple):
    model: Path
    oracle: Oracle


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> Case:
    model = request.getfixturevalue(request.param)
    return Case(model, Oracle(model, is_scaled=request.param == SLOW_MODEL))


async def test_chains_at_once_equal_the_plain_loop_one_by_one(
    open_engine: OpenEngine, case: Case
) -> None:
    engine = open_engine(case.model, max_num_batched_tokens=12)
    steps = record_steps(engine)
    runs = await run_together(engine, CHAINS)
    await assert_all_equal(engine, runs, CHAINS, case.oracle)
    await release_all(engine, runs)
    assert max(step.num_rows for step in steps) <= 12
    assert sum(step.num_chunks for step in steps) >= 6
    assert any(step.num_latent and step.num_sampled for step in steps)
    assert any(step.num_latent and step.num_sampled and step.num_prompt for step in steps)


@pytest.mark.parametrize("max_num_batched_tokens", [1, 3, 500])
async def test_a_prompt_in_chunks_of_any_size_equals_the_plain_loop(
    open_engine: OpenEngine, case: Case, max_num_batched_tokens: int
) -> None:
    engine = open_engine(case.model, max_num_batched_tokens=max_num_batched_tokens)
    steps = record_steps(engine)
    run = await run_chain(engine, CHAINS[0])
    await case.oracle.assert_run_equals(engine, run, CHAINS[0])
    await engine.release(run.memory)
    longest = max(len(case.oracle.encode(agent.prompt)) for agent in CHAINS[0].agents)
    assert max(step.num_prompt for step in steps) == min(max_num_batched_tokens, longest)


async def test_a_warm_prefix_cache_changes_nothing(open_engine: OpenEngine, case: Case) -> None:
    engine = open_engine(case.model, max_num_batched_tokens=24)
    await release_all(engine, await run_chains(engine, CHAINS))
    warm = await run_chains(engine, CHAINS)
    await assert_all_equal(engine, warm, CHAINS, case.oracle)
    await release_all(engine, warm)
    for run, chain in zip(warm, CHAINS, strict=True):
        num_rows = len(case.oracle.encode(chain.agents[0].prompt))
        assert run.num_cached_tokens == (num_rows - 1) // BLOCK_SIZE * BLOCK_SIZE
    assert sum(run.num_cached_tokens > 0 for run in warm) >= 6


async def test_preempted_sequences_come_back_to_the_same_rows(
    open_engine: OpenEngine, case: Case
) -> None:
    block_size = 2
    num_slots = max(num_slots_of(chain, case.oracle) for chain in CHAINS)
    engine = open_engine(
        case.model,
        num_blocks=num_slots // block_size + 3,
        block_size=block_size,
        max_num_batched_tokens=16,
        has_prefix_cache=False,
    )
    runs = await run_together(engine, CHAINS)
    await assert_all_equal(engine, runs, CHAINS, case.oracle)
    await release_all(engine, runs)
    assert sum(run.num_preemptions for run in runs) > 0
    stats = await engine.stats()
    assert stats.num_preemptions_total == sum(run.num_preemptions for run in runs)


async def test_memories_moved_out_of_the_pool_come_back_to_the_same_rows(
    open_engine: OpenEngine, case: Case
) -> None:
    last = Agent("So what is the answer?", 2)
    longer = [Chain((*chain.agents, last)) for chain in CHAINS]
    num_slots = max(num_slots_of(chain, case.oracle) for chain in (*CHAINS, *longer))
    engine = open_engine(
        case.model, num_blocks=num_slots // BLOCK_SIZE + 3, max_num_batched_tokens=16
    )
    runs = await run_together(engine, CHAINS)
    assert (await engine.stats()).num_offloads_total > 0
    await assert_all_equal(engine, runs, CHAINS, case.oracle)
    moved = [number for number, run in enumerate(runs) if run.memory.block_table is None][:4]
    assert len(moved) > 1
    for number in moved:  # they come back when they are read
        done = await speak_last(engine, longer[number], runs[number].memory, case.oracle)
        await assert_all_equal(engine, [done], [longer[number]], case.oracle)
        await engine.release(done.memory)
    await release_all(engine, runs)


async def test_memories_through_the_codec_continue_in_another_engine(
    open_engine: OpenEngine, case: Case
) -> None:
    first = open_engine(case.model, max_num_batched_tokens=16)
    second = open_engine(case.model, max_num_batched_tokens=16, block_size=3)

    async def hand_over(memory: ResidentMemory) -> ResidentMemory:
        packed = await pack_memory(first, memory, has_kv=True)
        return await second.load(memory.memory, unpack(packed))

    await assert_handing_over_changes_nothing(first, second, case.oracle, hand_over)


async def test_memories_prefilled_again_from_embeddings_equal_the_first_ones(
    open_engine: OpenEngine, case: Case
) -> None:
    first = open_engine(case.model, max_num_batched_tokens=16)
    second = open_engine(case.model, max_num_batched_tokens=16, block_size=3)

    async def hand_over(memory: ResidentMemory) -> ResidentMemory:
        packed = await pack_memory(first, memory, has_kv=False)
        latents = {segment_id: t.latents for segment_id, t in unpack(packed).items()}
        return await second.prefill_memory(memory.memory, latents)

    await assert_handing_over_changes_nothing(first, second, case.oracle, hand_over)


# --- how they are run ---------------------------------------------------------------------------


async def run_together(engine: Engine, chains: Sequence[Chain]) -> list[Run]:
    """All chains at once, and none starts before all have arrived."""
    with paused(engine):
        tasks = await start_all(*(run_chain(engine, chain) for chain in chains))
    return [await task for task in tasks]


async def speak_last(engine: Engine, chain: Chain, memory: ResidentMemory, oracle: Oracle) -> Run:
    """The last turn of a chain, behind what the others left; that stays the caller's."""
    index = len(chain.agents) - 1
    prompt_ids = tuple(oracle.encode(chain.agents[index].prompt))
    done = await engine.complete(chain.turn_of(index, prompt_ids, memory))
    assert done.memory is not None
    return Run(done.memory, (done,))


async def assert_handing_over_changes_nothing(
    first: Engine, second: Engine, oracle: Oracle, hand_over: HandOver
) -> None:
    """Every agent but the last runs in one engine, the last in the other."""
    chains = [chain for chain in CHAINS if len(chain.agents) > 1]
    heads = [Chain(chain.agents[:-1]) for chain in chains]
    runs = await run_chains(first, heads)
    memories = await asyncio.gather(*(hand_over(run.memory) for run in runs))
    await release_all(first, runs)
    for head, memory in zip(heads, memories, strict=True):
        await oracle.assert_memory_equals(second, memory, head)
    runs = await asyncio.gather(
        *(speak_last(second, c, memory, oracle) for c, memory in zip(chains, memories, strict=True))
    )
    await assert_all_equal(second, runs, chains, oracle)
    await release_all(second, runs)
    for memory in memories:
        await second.release(memory)


async def assert_all_equal(
    engine: Engine, runs: Sequence[Run], chains: Sequence[Chain], oracle: Oracle
) -> None:
    for run, chain in zip(runs, chains, strict=True):
        await oracle.assert_run_equals(engine, run, chain)


async def pack_memory(engine: Engine, memory: ResidentMemory, *, has_kv: bool) -> PackedSegments:
    return await engine.pack(memory, memory.memory.segments, has_kv=has_kv)


def num_slots_of(chain: Chain, oracle: Oracle) -> int:
    prompts = sum(len(oracle.encode(agent.prompt)) for agent in chain.agents)
    return prompts + sum(agent.latent_steps for agent in chain.agents) + chain.max_tokens
