"""Merged memories are what one forward pass with a block mask computes (fp32, within 1e-4).

Experts run at the same time in the engine. The other side is one pass of the plain model over all
rows, under a mask by which experts see themselves and their ancestors, and the judger sees all.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch.testing import assert_close

from latentmas_core.engine.engine import Engine
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.turn import Turn, TurnDone
from latentmas_core.latent.memory import MergeRule
from latentmas_core.latent.segment import KVRows, SegmentTensors
from tests.baselines.models import YARN, FullForward, embed, forward_at_once
from tests.engine.engines import OpenEngine
from tests.engine.oracle import TOLERANCE, Oracle, export_all, greedy
from tests.factories import make_tiny_model

PLANNER = "You plan. Divide the question among the experts."
MEDIC = "You are a doctor. What do you think?"
MATHEMATICIAN = "You know numbers. Compute."
CODER = "Write code."
JUDGER = "All experts have thought. Judge: what is the answer?"

SLOW_MODEL = "embedded_model_path"


class Case(NamedTuple):
    model: Path
    oracle: Oracle


@dataclass(frozen=True)
class Block:
    """Rows of one agent: its inputs, where they stand, and which earlier blocks they see."""

    embeddings: torch.Tensor  # [num_rows, hidden_size]
    first_position: int
    sees: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        return len(self.embeddings)


@pytest.fixture(scope="session")
def tiny_yarn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its rotary embedding scales cos and sin."""
    folder = tmp_path_factory.mktemp("tiny-yarn")
    return make_tiny_model(folder, "llama", rope_parameters=YARN)


@pytest.fixture(
    scope="module", params=["tiny_llama", "tiny_qwen2", "tiny_qwen3", "tiny_yarn", SLOW_MODEL]
)
def case(request: pytest.FixtureRequest) -> Case:
    model = request.getfixturevalue(request.param)
    return Case(model, Oracle(model, is_scaled=request.param == SLOW_MODEL))


async def test_experts_merged_with_reused_positions_equal_one_masked_forward(
    open_engine: OpenEngine, case: Case
) -> None:
    engine = open_engine(case.model)
    experts = await think_at_once(engine, case, [(MEDIC, 4), (MATHEMATICIAN, 2), (CODER, 6)])
    merged = await engine.merge(experts, MergeRule.REUSED)
    assert merged.memory.next_position == max(expert.num_rows for expert in experts)
    blocks = [await block_of(engine, case, expert, first_position=0) for expert in experts]
    await assert_judged_like_one_forward(engine, case, merged, blocks)
    await release(engine, *experts, merged)


async def test_experts_merged_consecutively_equal_one_masked_forward(
    open_engine: OpenEngine, case: Case
) -> None:
    engine = open_engine(case.model)
    experts = await think_at_once(engine, case, [(MEDIC, 4), (MATHEMATICIAN, 2), (CODER, 6)])
    merged = await engine.merge(experts, MergeRule.CONSECUTIVE)
    assert merged.memory.next_position == merged.num_rows
    blocks: list[Block] = []
    for expert in experts:
        start = sum(block.num_rows for block in blocks)
        blocks.append(await block_of(engine, case, expert, first_position=start))
    await assert_judged_like_one_forward(engine, case, merged, blocks)
    await release(engine, *experts, merged)


async def test_chains_of_experts_merged_consecutively_move_as_a_whole(
    open_engine: OpenEngine, case: Case
) -> None:
    engine = open_engine(case.model)
    medic, coder = await think_at_once(engine, case, [(MEDIC, 3), (CODER, 1)])
    (second,) = await think_at_once(engine, case, [(MATHEMATICIAN, 2)], behind=coder)
    merged = await engine.merge([medic, second], MergeRule.CONSECUTIVE)
    first = await block_of(engine, case, medic, first_position=0)
    middle = await block_of(engine, case, coder, first_position=first.num_rows)
    start = first.num_rows + middle.num_rows
    last = await block_of(engine, case, second, first_position=start, sees=(1,))
    await assert_judged_like_one_forward(engine, case, merged, [first, middle, last])
    await release(engine, medic, coder, second, merged)


async def test_experts_behind_a_shared_plan_merged_with_reused_positions_hold_it_once(
    open_engine: OpenEngine, case: Case
) -> None:
    engine = open_engine(case.model)
    (plan,) = await think_at_once(engine, case, [(PLANNER, 3)])
    experts = await think_at_once(engine, case, [(MEDIC, 4), (MATHEMATICIAN, 2)], behind=plan)
    merged = await engine.merge(experts)
    num_own_rows = sum(expert.num_rows - plan.num_rows for expert in experts)
    assert merged.num_rows == plan.num_rows + num_own_rows
    blocks = [await block_of(engine, case, plan, first_position=0)]
    for expert in experts:
        blocks.append(await block_of(engine, case, expert, first_position=plan.num_rows, sees=(0,)))
    await assert_judged_like_one_forward(engine, case, merged, blocks)
    await release(engine, plan, *experts, merged)


async def test_reused_positions_make_the_order_of_experts_irrelevant(
    open_engine: OpenEngine, case: Case
) -> None:
    engine = open_engine(case.model)
    experts = await think_at_once(engine, case, [(MEDIC, 4), (MATHEMATICIAN, 2)])
    judged = []
    for order in (experts, experts[::-1]):
        merged = await engine.merge(order)
        done = await judge(engine, case, merged)
        judged.append(await last_segment(engine, done))
        await release(engine, merged, done.memory)
    one, other = judged
    assert one.kv is not None
    assert other.kv is not None
    case.oracle.assert_rows_close(one.kv, other.kv)
    assert_close(one.latents, other.latents, atol=TOLERANCE, rtol=0)
    await release(engine, *experts)


@pytest.mark.parametrize("rule", MergeRule)
async def test_a_merged_memory_is_the_same_in_another_engine(
    open_engine: OpenEngine, case: Case, rule: MergeRule
) -> None:
    engine, other = open_engine(case.model), open_engine(case.model, block_size=3)
    experts = await think_at_once(engine, case, [(MEDIC, 4), (MATHEMATICIAN, 2)])
    merged = await engine.merge(experts, rule)
    segments = merged.memory.segments
    tensors = await export_all(engine, merged)
    contents = {segment.segment_id: t for segment, t in zip(segments, tensors, strict=True)}
    latents = {segment_id: content.latents for segment_id, content in contents.items()}
    loaded = await other.load(merged.memory, contents)
    prefilled = await other.prefill_memory(merged.memory, latents)
    expected = await judge_and_forget(engine, case, merged)
    for memory in (loaded, prefilled):
        judged = await judge_and_forget(other, case, memory)
        assert expected.kv is not None
        assert judged.kv is not None
        case.oracle.assert_rows_close(judged.kv, expected.kv)
        assert_close(judged.latents, expected.latents, atol=TOLERANCE, rtol=0)
    await release(engine, *experts, merged)
    await release(other, loaded, prefilled)


# --- the engine's side ----------------------------------------------------------------------------


async def think_at_once(
    engine: Engine,
    case: Case,
    agents: Sequence[tuple[str, int]],
    *,
    behind: ResidentMemory | None = None,
) -> list[ResidentMemory]:
    """One memory per (prompt, latent steps); none sees another."""
    turns = [
        Turn(prompt, prompt_ids(case, prompt), behind, num_latent_steps=steps, keeps_memory=True)
        for prompt, steps in agents
    ]
    dones = await asyncio.gather(*(engine.complete(turn) for turn in turns))
    return [done.memory for done in dones if done.memory is not None]


async def judge(engine: Engine, case: Case, memory: ResidentMemory) -> TurnDone:
    """One latent step says what the last hidden state is, one token what the logits are."""
    ids = prompt_ids(case, JUDGER)
    return await engine.complete(Turn("judger", ids, memory, 1, greedy(1), keeps_memory=True))


async def judge_and_forget(engine: Engine, case: Case, memory: ResidentMemory) -> SegmentTensors:
    done = await judge(engine, case, memory)
    content = await last_segment(engine, done)
    await release(engine, done.memory)
    return content


async def last_segment(engine: Engine, done: TurnDone) -> SegmentTensors:
    assert done.memory is not None
    (content,) = await engine.export(done.memory, done.memory.memory.segments[-1:])
    return content


async def release(engine: Engine, *memories: ResidentMemory | None) -> None:
    for memory in memories:
        assert memory is not None
        await engine.release(memory)


# --- the plain side -------------------------------------------------------------------------------


async def block_of(
    engine: Engine,
    case: Case,
    memory: ResidentMemory,
    *,
    first_position: int,
    sees: tuple[int, ...] = (),
) -> Block:
    """The inputs of the last agent of a memory."""
    segment = memory.memory.segments[-1]
    (content,) = await engine.export(memory, [segment])
    tokens = embed(case.oracle.model, list(segment.token_ids))
    return Block(torch.cat((tokens, content.latents)), first_position, sees)


async def assert_judged_like_one_forward(
    engine: Engine, case: Case, merged: ResidentMemory, blocks: list[Block]
) -> None:
    done = await judge(engine, case, merged)
    own = await last_segment(engine, done)
    rows = embed(case.oracle.model, list(prompt_ids(case, JUDGER)))
    start = max(block.first_position + block.num_rows for block in blocks)
    sees = tuple(range(len(blocks)))
    hidden = forward_blocks(case, [*blocks, Block(rows, start, sees)]).hidden
    latent = case.oracle.plain.align(hidden[-1:])
    assert_close(own.latents, latent, atol=TOLERANCE, rtol=0)
    rows = torch.cat((rows, latent))
    full = forward_blocks(case, [*blocks, Block(rows, start, sees)])
    assert own.kv is not None
    case.oracle.assert_rows_close(own.kv, rows_of(full, len(rows)))
    assert done.output_ids == (int(full.logits[-1].argmax()),)
    await release(engine, done.memory)


def forward_blocks(case: Case, blocks: Sequence[Block]) -> FullForward:
    owner = torch.cat([torch.full((block.num_rows,), i) for i, block in enumerate(blocks)])
    sees = torch.eye(len(blocks), dtype=torch.bool)  # [num_blocks, num_blocks]
    for index, block in enumerate(blocks):
        sees[index, list(block.sees)] = True
    mask = sees[owner][:, owner].tril()  # rows of an earlier block all stand before
    positions = [block.first_position + torch.arange(block.num_rows) for block in blocks]
    embeddings = torch.cat([block.embeddings for block in blocks])
    return forward_at_once(case.oracle.model, embeddings, positions=torch.cat(positions), mask=mask)


def rows_of(full: FullForward, num_last: int) -> KVRows:
    """Keys and values of the last rows in the layout of segments."""
    keys, values = (torch.stack(layers).transpose(1, 2) for layers in (full.keys, full.values))
    return KVRows(keys[:, -num_last:], values[:, -num_last:])


def prompt_ids(case: Case, prompt: str) -> tuple[int, ...]:
    return tuple(case.oracle.encode(prompt))
