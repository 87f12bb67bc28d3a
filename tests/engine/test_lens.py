"""The lens tells what each latent step is close to: what a loop without cache, batch or blocks
finds, once per step, and at no cost for those who do not ask."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from benchmarks.baselines.plain import PlainLatentMAS
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.lens import NUM_LENS_TOKENS, LensReading, read_lens
from latentmas_core.engine.turn import Thought, Turn, TurnDone
from tests.engine.engines import BLOCK_SIZE, OpenEngine, load_plain
from tests.engine.stepping import paused, start_all
from tests.engine.turns import create_turn, think
from tests.lora.adapters import lone_peft, make_adapter, mix_of

PROMPTS = ("Plan how to add 17 and 25.", "What is wrong with the plan above?")
STEPS = 3
ATOL = 1e-4


class Seen(NamedTuple):
    """What a turn reported of its thoughts, and its end."""

    thoughts: list[Thought]
    done: TurnDone

    @property
    def readings(self) -> list[LensReading]:
        assert all(thought.reading for thought in self.thoughts)
        return [thought.reading for thought in self.thoughts if thought.reading]


async def watch(engine: Engine, turn: Turn) -> Seen:
    events = [event async for event in engine.run(turn)]
    assert isinstance(events[-1], TurnDone)
    return Seen([event for event in events if isinstance(event, Thought)], events[-1])


async def watch_all(engine: Engine, turns: Sequence[Turn]) -> list[Seen]:
    """All in one batch from the first step on."""
    with paused(engine):
        tasks = await start_all(*(watch(engine, turn) for turn in turns))
    return await asyncio.gather(*tasks)


@torch.inference_mode()
def plain_lens(
    model: Any, prompts: Sequence[str], *, realign: bool = True, latent_steps: int = STEPS
) -> list[list[tuple[float, torch.Tensor]]]:
    """Per agent and step the norm and all probabilities; the whole text is computed every time."""
    align = PlainLatentMAS(model, realign=realign).align
    embed = model.get_input_embeddings()
    rows = embed(torch.tensor([], dtype=torch.long))
    found = []
    for prompt in prompts:
        rows = torch.cat([rows, embed(torch.tensor(list(prompt.encode())))])
        steps = []
        for _ in range(latent_steps):
            hidden = model.model(inputs_embeds=rows[None], use_cache=False).last_hidden_state[0]
            probabilities = model.get_output_embeddings()(hidden[-1]).softmax(dim=-1)
            steps.append((float(hidden[-1].norm()), probabilities))
            rows = torch.cat([rows, align(hidden[-1:])])
        found.append(steps)
    return found


def assert_readings(
    readings: Sequence[LensReading], expected: Sequence[tuple[float, torch.Tensor]]
) -> None:
    """Neighbours may change places at a near tie; what each token has may not."""
    for reading, (norm, probabilities) in zip(readings, expected, strict=True):
        assert reading.norm == pytest.approx(norm, rel=ATOL)
        shares = torch.tensor(reading.probabilities)
        assert_close(shares, probabilities[list(reading.token_ids)], atol=ATOL, rtol=0)
        assert_close(shares, probabilities.topk(NUM_LENS_TOKENS).values, atol=ATOL, rtol=0)


@pytest.mark.parametrize("realign", [True, False], ids=["realigned", "as it is"])
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2", "tiny_qwen3"])
async def test_lens_is_that_of_the_plain_loop_in_a_batch_with_others(
    open_engine: OpenEngine, request: pytest.FixtureRequest, family: str, realign: bool
) -> None:
    model: Path = request.getfixturevalue(family)
    engine = open_engine(model, latent_realign=realign, max_num_batched_tokens=20)
    planned = await think(engine, prompt=PROMPTS[0], latent_steps=STEPS)
    others = [create_turn("Hi.", latent_steps=5), create_turn("Say something.", max_tokens=9)]
    first, second, silent, _ = await watch_all(
        engine,
        [
            create_turn(PROMPTS[0], latent_steps=STEPS, has_lens=True),
            create_turn(PROMPTS[1], latent_steps=STEPS, has_lens=True, memory=planned),
            *others,
        ],
    )
    await engine.release(planned)
    expected = plain_lens(load_plain(model).model, PROMPTS, realign=realign)
    assert_readings(first.readings, expected[0])
    assert_readings(second.readings, expected[1])
    assert silent.thoughts == [Thought(5)]


async def test_realignment_changes_what_the_second_thought_is_close_to(tiny_qwen2: Path) -> None:
    """Or the two cases above would show nothing."""
    model = load_plain(tiny_qwen2).model
    (on,), (off,) = (plain_lens(model, PROMPTS[:1], realign=realign) for realign in (True, False))
    assert_close(on[0][1], off[0][1])
    assert (on[1][1] - off[1][1]).abs().max() > 100 * ATOL


async def test_lens_sees_each_turn_through_its_own_adapter(
    open_engine: OpenEngine, tiny_qwen2: Path, tmp_path: Path
) -> None:
    folders = {
        str(seed): make_adapter(tmp_path / str(seed), tiny_qwen2, seed=seed) for seed in (1, 2)
    }
    engine = open_engine(tiny_qwen2)
    for name, folder in folders.items():
        await engine.load_adapter(name, folder)
    plain = create_turn(PROMPTS[0], latent_steps=STEPS, has_lens=True)
    turns = [plain, *(replace(plain, adapters=mix_of(engine, name)) for name in folders)]
    seen = await watch_all(engine, turns)
    models = [
        load_plain(tiny_qwen2).model,
        *(lone_peft(tiny_qwen2, folder).get_base_model() for folder in folders.values()),
    ]
    for one, model in zip(seen, models, strict=True):
        (expected,) = plain_lens(model, PROMPTS[:1])
        assert_readings(one.readings, expected)
    assert len({one.readings[0].token_ids for one in seen}) == len(seen)


async def test_a_step_is_told_once_although_its_row_is_computed_again(
    open_engine: OpenEngine, tiny_llama: Path
) -> None:
    prompt, num_steps, num_turns = "Hi.", 12, 2
    num_blocks_each = -(-(len(prompt) + num_steps) // BLOCK_SIZE)
    engine = open_engine(
        tiny_llama, num_blocks=num_turns * num_blocks_each + 2, has_prefix_cache=False
    )
    # The older one grows until the youngest has to give way, in the midst of its thoughts.
    speaker = create_turn("Go.", max_tokens=7 * BLOCK_SIZE)
    turn = create_turn(prompt, latent_steps=num_steps, has_lens=True)
    _, *seen = await watch_all(engine, [speaker, *[turn] * num_turns])
    assert sum(one.done.num_preemptions for one in seen) > 0
    (expected,) = plain_lens(load_plain(tiny_llama).model, [prompt], latent_steps=num_steps)
    for one in seen:
        assert [t.num_latent_steps for t in one.thoughts] == [*range(1, num_steps + 1)]
        for reading, (norm, _) in zip(one.readings, expected, strict=True):
            assert reading.norm == pytest.approx(norm, rel=0.02)  # rounding grows with the steps
    stats = await engine.stats()
    assert stats.num_latent_steps_total == num_steps * num_turns


async def test_thoughts_come_before_the_answer_and_change_nothing_of_it(engine: Engine) -> None:
    turn = create_turn(PROMPTS[0], latent_steps=STEPS, max_tokens=6)
    without = await watch(engine, turn)
    events = [event async for event in engine.run(replace(turn, has_lens=True))]
    assert all(isinstance(event, Thought) for event in events[:STEPS])
    assert not any(isinstance(event, Thought) for event in events[STEPS:])
    assert isinstance(events[-1], TurnDone)
    assert events[-1].output_ids == without.done.output_ids
    assert without.thoughts == [Thought(STEPS)]


async def test_head_is_applied_to_rows_of_those_who_ask_and_to_no_other(engine: Engine) -> None:
    rows_of_calls: list[int] = []
    lm_head = engine.stepper.runner._lm_head

    def counted(rows: torch.Tensor) -> torch.Tensor:
        rows_of_calls.append(len(rows))
        return lm_head(rows)

    engine.stepper.runner._lm_head = counted
    turn = create_turn(PROMPTS[0], latent_steps=STEPS)
    await watch_all(engine, [turn, turn])
    assert rows_of_calls == []
    await watch_all(engine, [turn, replace(turn, has_lens=True), replace(turn, has_lens=True)])
    assert sum(rows_of_calls) == 2 * STEPS
    assert len(rows_of_calls) < 2 * STEPS, "rows of one step are not one product"


async def test_turn_without_latent_steps_has_nothing_to_show(engine: Engine) -> None:
    seen = await watch(engine, create_turn(max_tokens=3, has_lens=True))
    assert seen.thoughts == []


def test_reading_is_the_softmax_and_the_norm_in_fp32() -> None:
    hidden = torch.tensor([[3.0, 4.0]], dtype=torch.bfloat16)
    logits = torch.tensor([[0.0, 2.0, 1.0, -5.0, 4.0, 3.0, 2.5]], dtype=torch.bfloat16)
    (reading,) = read_lens(hidden, logits)
    assert reading.norm == 5.0
    assert reading.token_ids == (4, 5, 6, 1, 2)
    expected = logits[0].double().softmax(dim=-1)[list(reading.token_ids)]
    assert reading.probabilities == pytest.approx(expected.tolist(), rel=1e-6)


@pytest.mark.parametrize("odd", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_is_left_out_and_never_read_as_a_number(odd: float) -> None:
    hidden = torch.tensor([[3.0, 4.0], [odd, 4.0], [3e30, 4e30]])
    logits = torch.tensor([[1.0, 3.0, 2.0], [odd, odd, odd], [1.0, torch.inf, 2.0]])
    good, nothing, large = read_lens(hidden, logits)
    assert good.token_ids == (1, 2, 0)
    assert nothing == LensReading(None, (), ())
    assert large == LensReading(pytest.approx(5e30), (), ())


@pytest.mark.parametrize("scale", [1e30, 1e38])
async def test_lens_of_a_model_that_overflows_ends_no_step_and_is_json(
    open_engine: OpenEngine, tiny_qwen2: Path, tmp_path: Path, scale: float
) -> None:
    """Its final norm makes hidden states, and logits with the larger one, infinite."""
    model = tmp_path / "loud"
    copytree(tiny_qwen2, model)
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] *= scale
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    engine = open_engine(model)
    turn = create_turn(PROMPTS[0], latent_steps=STEPS, max_tokens=3, has_lens=True)
    seen = await watch(engine, turn)
    assert len(seen.readings) == STEPS
    for reading in seen.readings:
        json.dumps(reading, allow_nan=False)
    assert len(seen.done.output_ids) == 3
    assert engine.is_healthy


def test_vocabulary_smaller_than_the_lens_is_shown_whole() -> None:
    (reading,) = read_lens(torch.ones(1, 2), torch.tensor([[1.0, 3.0, 2.0]]))
    assert reading.token_ids == (1, 2, 0)
    assert sum(reading.probabilities) == pytest.approx(1.0)
