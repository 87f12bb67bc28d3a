"""What a step costs, in numbers that do not depend on the machine: a guard against regressions.

A count that moved is no fault by itself. Where it was meant, the number here goes with the change.
"""

import asyncio
from pathlib import Path

import pytest

from latentmas_core import LatentMASSystem
from latentmas_core.engine.engine import Engine
from tests.engine.engines import BLOCK_SIZE, OpenEngine
from tests.engine.operations import Operations, assert_count, watch_scheduling, watch_steps
from tests.engine.stepping import paused, start_all
from tests.engine.turns import PROMPT, create_turn, think
from tests.factories import make_tiny_model
from tests.lora.adapters import make_adapter, mix_of

# Of tests.factories.make_tiny_model.
NUM_LAYERS, HIDDEN, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, INNER = 3, 64, 4, 2, 16, 128
FLOAT_BYTES = 4
# q, k and v in one; out; gate and up in one; down.
PRODUCTS_PER_LAYER = 4
FAMILIES = ["tiny_llama", "tiny_qwen2", "tiny_qwen3"]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


async def operations_of(engine: Engine, **fields: object) -> list[Operations]:
    steps = watch_steps(engine)
    await engine.complete(create_turn(**fields))
    return steps


# --- one step -------------------------------------------------------------------------------------


async def test_step_takes_four_products_per_layer_one_attention_and_the_head_where_it_speaks(
    open_engine: OpenEngine, family: Path
) -> None:
    engine = open_engine(family, max_num_batched_tokens=16)
    assert len(PROMPT) == 17
    steps = await operations_of(engine, latent_steps=2, max_tokens=3)
    of_layers = NUM_LAYERS * PRODUCTS_PER_LAYER
    # The first chunk ends inside the prompt; the second and the first latent row bring a thought
    # each, in one product where it is realigned; then each row brings a token.
    is_realigned = engine.stepper.runner.realign.matrix is not None
    expected = [0, is_realigned, is_realigned, 1, 1, 1]
    for number, (step, behind) in enumerate(zip(steps, expected, strict=True)):
        assert_count(f"products of step {number}", step.num_products, of_layers + behind)
        assert_count(f"attentions of step {number}", step.num_attentions, NUM_LAYERS)
        # Keys and values of all rows at once.
        assert_count(f"writes of step {number}", step.by_name["index_copy_"], 2 * NUM_LAYERS)


def _norm_floats(size: int) -> int:
    """The negated row, both side by side, what is made of them, a mean and a deviation."""
    return size + 2 * size + 2 * size + 2


# What a layer allocates for one row.
_HEADS = (NUM_HEADS + NUM_KV_HEADS) * HEAD_DIM
_LAYER_FLOATS = sum(
    (
        2 * _norm_floats(HIDDEN),
        _HEADS + NUM_KV_HEADS * HEAD_DIM,  # q, k, v
        3 * _HEADS,  # rotated: times the cosines, halves swapped, their sum
        NUM_HEADS * HEAD_DIM,  # attended
        2 * HIDDEN,  # out, added
        2 * INNER + INNER,  # gate and up, activated; their product is in place
        2 * HIDDEN,  # down, added
    )
)
# Norms of each head, and queries and keys in one again.
_HEAD_NORM_FLOATS = (NUM_HEADS + NUM_KV_HEADS) * _norm_floats(HEAD_DIM) + _HEADS


@pytest.mark.parametrize(
    # Tensors: 5 per norm, 4 products, 3 of the rotation, what is attended, 2 sums, what is
    # activated; with norms of heads 2 norms more and what joins queries and keys again. Operations:
    # those that make them (3 per norm), 2 writes of keys and values, the product in place, and
    # 16 views (4 more between the norms of heads).
    ("architecture", "num_operations", "num_tensors", "num_floats"),
    [
        ("llama", 36, 21, _LAYER_FLOATS),
        ("qwen2", 36, 21, _LAYER_FLOATS),
        ("qwen3", 47, 32, _LAYER_FLOATS + _HEAD_NORM_FLOATS),
    ],
)
async def test_one_more_layer_costs_a_decoded_row_so_much(
    open_engine: OpenEngine,
    tmp_path: Path,
    architecture: str,
    num_operations: int,
    num_tensors: int,
    num_floats: int,
) -> None:
    decoded = []
    for num_layers in (NUM_LAYERS, NUM_LAYERS + 1):
        folder = tmp_path / str(num_layers)
        model = make_tiny_model(folder, architecture, num_hidden_layers=num_layers)
        decoded.append((await operations_of(open_engine(model), max_tokens=3))[-1])
    less, more = decoded
    of_layer = more.by_name - less.by_name
    assert_count(f"operations of a layer {dict(of_layer)}", of_layer.total(), num_operations)
    new_tensors = more.num_new_tensors - less.num_new_tensors
    assert_count("tensors that a layer allocates", new_tensors, num_tensors)
    new_bytes = more.num_new_bytes - less.num_new_bytes
    assert_count("bytes that a layer allocates", new_bytes, num_floats * FLOAT_BYTES)


# --- what must not make a step dearer -------------------------------------------------------------


async def test_history_adds_no_operation_and_no_byte_to_a_step(engine: Engine) -> None:
    steps = await operations_of(engine, max_tokens=60)
    _, early, *_, late = steps
    # 2 and 60 tokens behind the prompt: the rows are read where they lie.
    assert late.by_name == early.by_name
    assert_count("bytes of a late step", late.num_new_bytes, early.num_new_bytes)


async def test_further_sequences_add_numbers_about_them_and_nothing_to_the_layers(
    engine: Engine,
) -> None:
    few, many = [await _decoded_together(engine, num) for num in (2, 5)]
    added = many.by_name - few.by_name
    assert not few.by_name - many.by_name
    # Each has its position and its slot; what is left is how torch makes a tensor from a list.
    assert_count("positions", added.pop("arange"), 3)
    assert_count("slots", added.pop("to"), 3)
    assert added.keys() <= {"lift_fresh", "detach_"}, added


async def _decoded_together(engine: Engine, num_turns: int) -> Operations:
    """The last step of turns of different lengths, in which all decode one row."""
    steps = watch_steps(engine)
    turns = [create_turn("x" * (3 + number), max_tokens=4) for number in range(num_turns)]
    with paused(engine):
        tasks = await start_all(*(engine.complete(turn) for turn in turns))
    await asyncio.gather(*tasks)
    return steps[-1]


async def test_idle_adapters_add_nothing_to_a_step_and_one_in_use_its_own_products(
    open_engine: OpenEngine, tiny_llama: Path, tmp_path: Path
) -> None:
    def open_one() -> Engine:
        return open_engine(tiny_llama, num_blocks=2000, lora={"max_loaded_adapters": 4})

    folders = [make_adapter(tmp_path / str(seed), tiny_llama, seed=seed) for seed in range(4)]
    alone, crowded = open_one(), open_one()
    await alone.load_adapter("0", folders[0], is_pinned=True)
    plain = (await operations_of(open_engine(tiny_llama), max_tokens=3))[-1]
    for number, folder in enumerate(folders):
        await crowded.load_adapter(str(number), folder, is_pinned=True)
    beside = (await operations_of(crowded, max_tokens=3))[-1]
    assert beside.by_name == plain.by_name
    assert_count("bytes beside idle adapters", beside.num_new_bytes, plain.num_new_bytes)
    first, second = [
        (await operations_of(one, max_tokens=3, adapters=mix_of(one, "0")))[-1]
        for one in (alone, crowded)
    ]
    assert second.by_name == first.by_name
    # One shrink for each of the 4 inputs, one expand for each of the 7 targets.
    of_adapter = NUM_LAYERS * (PRODUCTS_PER_LAYER + 7)
    assert_count("products with an adapter", first.num_products, plain.num_products + of_adapter)


# --- hand-overs inside an engine ------------------------------------------------------------------


@pytest.mark.parametrize("num_readers", [1, 3])
async def test_memory_is_handed_over_in_place_and_only_a_tail_that_others_write_is_copied(
    engine: Engine, num_readers: int
) -> None:
    memory = await think(engine, latent_steps=4)
    assert memory.num_rows % BLOCK_SIZE == 1
    schedules = watch_scheduling(engine)
    turns = [create_turn("So?", max_tokens=2, memory=memory) for _ in range(num_readers)]
    with paused(engine):
        tasks = await start_all(*(engine.complete(turn) for turn in turns))
    await asyncio.gather(*tasks)
    # The first reader goes on in the last block; each other gets a copy of it: keys and values of
    # one block, in all layers.
    copies = sum(operations.by_name["copy_"] for operations in schedules)
    assert_count("copies of blocks", copies, 2 * (num_readers - 1))
    assert_count("bytes", sum(operations.num_new_bytes for operations in schedules), 0)
    await engine.release(memory)


# --- whole requests -------------------------------------------------------------------------------


async def test_forward_passes_of_a_hierarchical_request_follow_from_its_agents(
    open_engine: OpenEngine, tmp_path: Path
) -> None:
    max_rows, latent_steps, max_tokens = 100, 3, 5
    model = make_tiny_model(tmp_path, "llama", max_position_embeddings=8192)
    engine = open_engine(
        model, num_blocks=2000, has_prefix_cache=False, max_num_batched_tokens=max_rows
    )
    steps = watch_steps(engine)
    with LatentMASSystem.from_engine(engine, latent_steps=latent_steps) as system:
        request = {"pipeline": "hierarchical", "max_tokens": max_tokens, "temperature": 0.0}
        result = await asyncio.to_thread(
            system.add_default_agents().run, "What is 2 + 3?", **request
        )
    *thinkers, judger = result.agents
    assert [agent.latent_steps for agent in thinkers] == [latent_steps] * 3
    assert judger.latent_steps == 0
    # A prompt takes a pass per chunk, a thought one; the last token of an answer is not fed back.
    num_chunks = sum(-(-agent.prompt_tokens // max_rows) for agent in result.agents)
    num_passes = num_chunks + 3 * latent_steps + judger.completion_tokens - 1
    assert_count("forward passes", len(steps), num_passes)
    num_rows = result.usage.prompt_tokens + 3 * latent_steps + judger.completion_tokens - 1
    assert_count("rows", (await engine.stats()).num_rows_total, num_rows)
