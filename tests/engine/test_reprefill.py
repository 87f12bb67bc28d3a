"""Memories that are computed again from tokens and latents see exactly what they saw before.

That whole memories come out equal is shown in test_parity and test_merge_parity.
"""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from latentmas_core.engine.engine import Engine
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.turn import Turn
from latentmas_core.latent.memory import Memory, MergeRule
from tests.baselines.models import forward_at_once
from tests.engine.engines import OpenEngine, load_plain
from tests.engine.oracle import export_all
from tests.engine.stepping import record_steps


@pytest.fixture
def engine(open_engine: OpenEngine, tiny_qwen3: Path) -> Engine:
    return open_engine(tiny_qwen3)


async def think(
    engine: Engine, prompt: str, *, latent_steps: int, behind: ResidentMemory | None = None
) -> ResidentMemory:
    ids = tuple(prompt.encode())
    done = await engine.complete(Turn(prompt, ids, behind, latent_steps, keeps_memory=True))
    assert done.memory is not None
    return done.memory


async def release(engine: Engine, *memories: ResidentMemory) -> None:
    for memory in memories:
        await engine.release(memory)


@pytest.mark.parametrize("has_seen_prompt", [True, False])
async def test_latents_alone_attend_to_the_latents_before_them(
    engine: Engine, tiny_qwen3: Path, has_seen_prompt: bool
) -> None:
    first = await think(engine, "Plan it.", latent_steps=3)
    carried = await engine.keep_latents(first)
    read = first if has_seen_prompt else carried
    second = await think(engine, "Criticize.", latent_steps=2, behind=read)
    latents = await engine.keep_latents(second)
    assert latents.num_rows == 5
    again = await engine.prefill_memory(latents.memory, latents.latents)
    assert again.memory == latents.memory

    contents = await export_all(engine, again)
    embeddings = torch.cat([content.latents for content in contents])
    starts = [segment.first_position for segment in latents.memory.segments]
    positions = torch.tensor([starts[0] + row for row in range(3)] + [starts[1], starts[1] + 1])
    full = forward_at_once(load_plain(tiny_qwen3).model, embeddings, positions=positions)
    for name, expected in (("keys", full.keys), ("values", full.values)):
        rows = torch.cat([getattr(content.kv, name) for content in contents], dim=1)
        assert_close(rows, torch.stack(expected).transpose(1, 2), atol=1e-4, rtol=0)
    await release(engine, first, carried, second, latents, again)


async def test_experts_do_not_see_each_other_here_either(engine: Engine) -> None:
    experts = [await think(engine, name, latent_steps=2) for name in ("medic", "coder")]
    merged = await engine.merge(experts)
    again = await engine.prefill_memory(merged.memory, merged.latents)
    for expert, content in zip(experts, await export_all(engine, again), strict=True):
        (own,) = await export_all(engine, expert)
        assert own.kv is not None
        assert content.kv is not None
        assert_close(content.kv.keys, own.kv.keys, atol=1e-5, rtol=0)
        assert_close(content.kv.values, own.kv.values, atol=1e-5, rtol=0)
    await release(engine, *experts, merged, again)


@pytest.mark.parametrize("rule", MergeRule)
async def test_thoughts_behind_merged_experts_see_them_where_they_stood(
    engine: Engine, rule: MergeRule
) -> None:
    experts = [await think(engine, name, latent_steps=2) for name in ("medic", "coder")]
    merged = await engine.merge(experts, rule)
    judged = await think(engine, "judge", latent_steps=3, behind=merged)
    again = await engine.prefill_memory(judged.memory, judged.latents)
    *_, expected = await export_all(engine, judged)
    *_, actual = await export_all(engine, again)
    assert expected.kv is not None
    assert actual.kv is not None
    assert_close(actual.kv.keys, expected.kv.keys, atol=1e-4, rtol=0)
    assert_close(actual.kv.values, expected.kv.values, atol=1e-4, rtol=0)
    await release(engine, *experts, merged, judged, again)


async def test_every_row_is_computed_once_and_no_step_is_thought_again(engine: Engine) -> None:
    first = await think(engine, "Plan it.", latent_steps=3)
    second = await think(engine, "Criticize.", latent_steps=2, behind=first)
    before = await engine.stats()
    steps = record_steps(engine)
    again = await engine.prefill_memory(second.memory, second.latents)
    after = await engine.stats()
    assert sum(step.num_rows for step in steps) == second.num_rows
    assert [step.num_latent for step in steps] == [3, 2]
    assert after.num_latent_steps_total == before.num_latent_steps_total
    assert again.num_rows == second.num_rows
    await release(engine, first, second, again)


async def test_part_of_a_chain_is_prefilled_without_what_is_missing(engine: Engine) -> None:
    first = await think(engine, "Plan it.", latent_steps=3)
    second = await think(engine, "Criticize.", latent_steps=2, behind=first)
    tail = Memory(second.memory.placements[1:])
    alone = await engine.prefill_memory(tail, second.latents)
    assert alone.memory == tail
    (unseeing,), (_, seeing) = await export_all(engine, alone), await export_all(engine, second)
    assert unseeing.kv is not None
    assert seeing.kv is not None
    assert (unseeing.kv.values[-1] - seeing.kv.values[-1]).abs().max() > 1e-3
    await release(engine, first, second, alone)
