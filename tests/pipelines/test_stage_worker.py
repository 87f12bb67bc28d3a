"""One stage on one engine: what each agent is given, says and leaves."""

from contextlib import aclosing

import pytest

from latentmas_core.errors import ContextLengthError, SegmentError
from latentmas_core.events import (
    AgentFinished,
    AgentPhase,
    AgentStarted,
    AgentThought,
    AnswerDelta,
)
from latentmas_core.pipelines.builtin import builtin_pipelines
from latentmas_core.pipelines.plan import plan
from latentmas_core.pipelines.runner import Said, StageDone
from latentmas_core.pipelines.spec import PipelineSpec
from latentmas_core.pipelines.stage_worker import Roster, StageWorker, check_question
from latentmas_core.request import ReasonRequest
from tests.pipelines.fake_engine import FakeEngine

QUESTION = "What is 6 x 7?"


def stage_of(*agents, speaks=True):
    """A fused stage; if it does not speak, the speaker sits in another group."""
    chain = [*agents] if speaks else [*agents, "judger"]
    groups = dict.fromkeys(chain, "one") | ({} if speaks else {"judger": "two"})
    return plan(PipelineSpec.chain("test", chain), groups).stages[0]


async def collect(worker, stage, *, memory=None, transcript=(), **fields):
    request = ReasonRequest(question=QUESTION, **fields)
    return [item async for item in worker.run(stage, memory, transcript, request)]


async def test_latent_chain_hands_each_memory_to_the_next_and_keeps_none(worker, engine):
    items = await collect(worker, stage_of("planner", "critic", "judger"))
    planner, critic, judger = engine.turns
    assert planner.memory is None
    assert [s.agent for s in critic.memory.memory.segments] == ["planner"]
    assert [s.agent for s in judger.memory.memory.segments] == ["planner", "critic"]
    assert items[-1] == StageDone(None, (Said("judger", items[-2].trace.text),), 0, "length")


async def test_events_tell_who_started_thought_and_finished(worker):
    items = await collect(worker, stage_of("planner", "judger"))
    kinds = [(type(item), item.agent) for item in items if hasattr(item, "agent")]
    assert kinds == [
        (AgentStarted, "planner"),
        (AgentPhase, "planner"),
        (AgentThought, "planner"),
        (AgentFinished, "planner"),
        (AgentStarted, "judger"),
        (AgentPhase, "judger"),
        (AgentFinished, "judger"),
    ]
    said = "".join(item.text for item in items if isinstance(item, AnswerDelta))
    assert said == items[-2].trace.text


async def test_traces_say_what_each_agent_really_did(worker, engine):
    items = await collect(worker, stage_of("planner", "judger"), latent_steps=3)
    planner, judger = (item.trace for item in items if isinstance(item, AgentFinished))
    assert (planner.name, planner.role, planner.adapter) == (
        "planner",
        "problem decomposition",
        "base",
    )
    assert (planner.latent_steps, planner.completion_tokens, planner.text) == (3, 0, "")
    assert (judger.latent_steps, judger.completion_tokens) == (0, len(judger.text))
    assert planner.prompt_tokens == len(engine.turn_of("planner").prompt_ids)
    assert planner.latency_ms > 0
    assert (planner.phases.queued_ms, planner.phases.prefill_ms) == (0.0, 250.0)


async def test_memory_of_a_stage_that_does_not_speak_is_the_receivers(worker, engine):
    *_, done = await collect(worker, stage_of("planner", "critic", speaks=False))
    assert [s.agent for s in done.memory.memory.segments] == ["planner", "critic"]
    assert list(engine.live.values()) == [done.memory]
    assert done.said == ()
    await engine.release(done.memory)


async def test_memory_that_is_read_stays_the_callers(worker, engine):
    *_, given = await collect(worker, stage_of("planner", speaks=False))
    await collect(worker, stage_of("critic", "judger"), memory=given.memory)
    assert list(engine.live.values()) == [given.memory]
    await engine.release(given.memory)


async def test_latents_only_are_carried_on_request(worker, engine):
    await collect(worker, stage_of("planner", "critic", "judger"), carry="latents")
    read = engine.turn_of("judger").memory.memory
    assert read.num_rows == 2 * 7
    assert engine.calls == ["keep_latents", "keep_latents"]


async def test_carrying_latents_without_any_is_refused(worker):
    with pytest.raises(SegmentError, match="'planner' took 0 latent steps"):
        await collect(worker, stage_of("planner", "judger"), carry="latents", latent_steps=0)


async def test_embeddings_are_prefilled_again_by_every_reader(worker, engine):
    await collect(worker, stage_of("planner", "critic", "judger"), handoff="embeddings")
    assert engine.calls == ["prefill_memory", "prefill_memory"]


async def test_text_mode_shows_everybody_all_earlier_words_and_no_memory(worker, engine):
    stage = stage_of("planner", "critic", "judger")
    said = (Said("elder", "Listen."),)
    items = await collect(worker, stage, transcript=said, mode="text")
    assert all(turn.memory is None for turn in engine.turns)
    assert all(turn.num_latent_steps == 0 for turn in engine.turns)
    texts = {item.agent: item.trace.text for item in items if isinstance(item, AgentFinished)}
    for earlier in ("planner", "critic"):
        assert f"{earlier}: {texts[earlier]}" in engine.prompt_of("judger")
    assert "elder: Listen." in engine.prompt_of("critic")
    assert [one.agent for one in items[-1].said] == ["planner", "critic", "judger"]


async def test_only_the_speakers_words_are_the_answer(worker):
    items = await collect(worker, stage_of("planner", "judger"), mode="text")
    answer = "".join(item.text for item in items if isinstance(item, AnswerDelta))
    assert answer.startswith("judger says")


async def test_hand_off_by_text_thinks_and_writes(worker, engine):
    await collect(worker, stage_of("planner", "judger"), handoff="text", latent_steps=2)
    assert engine.turn_of("planner").num_latent_steps == 2
    assert engine.turn_of("judger").memory is None
    assert "planner: planner says" in engine.prompt_of("judger")


async def test_system_prompt_of_the_request_reaches_every_agent(worker, engine):
    await collect(worker, stage_of("planner", "judger"), system_prompt="Be brief.")
    assert all("Be brief." in engine.prompt_of(agent) for agent in ("planner", "judger"))


async def test_speaker_behind_memory_is_shown_the_question(worker, engine):
    await collect(worker, stage_of("planner", "judger"))
    assert QUESTION in engine.prompt_of("judger")


@pytest.mark.parametrize("agent", ["planner", "critic", "judger"])
async def test_failing_turn_gives_everything_back(worker, engine, agent):
    async def fail():
        raise ContextLengthError("too long")

    engine.before_turn[agent] = fail
    with pytest.raises(ContextLengthError, match="too long"):
        await collect(worker, stage_of("planner", "critic", "judger"))


@pytest.mark.parametrize(
    ("fields", "max_live"),
    [
        ({}, 2),  # the one that is read and the one that is made
        ({"carry": "latents"}, 3),  # and its latents
        ({"handoff": "embeddings"}, 3),  # and what was prefilled again
        ({"mode": "text"}, 0),
    ],
)
async def test_long_chain_holds_no_memory_longer_than_it_is_read(worker, engine, fields, max_live):
    await collect(worker, stage_of(*["planner", "critic"] * 4, "judger"), **fields)
    assert engine.max_live == max_live


@pytest.mark.parametrize("fields", [{}, {"handoff": "embeddings"}, {"mode": "text"}], ids=str)
async def test_closing_a_stage_at_any_item_gives_everything_back_at_once(worker, engine, fields):
    stage = stage_of("planner", "critic", "judger")
    for num_items in range(len(await collect(worker, stage, **fields))):
        request = ReasonRequest(question=QUESTION, **fields)
        async with aclosing(worker.run(stage, None, (), request)) as items:
            for _ in range(num_items):
                await anext(items)
        engine.check_idle()


async def test_question_longer_than_all_positions_is_refused_with_both_numbers(tokenizer, agents):
    engine = FakeEngine(tokenizer, max_positions=50)
    worker = StageWorker(engine, Roster(agents, 1))
    request = ReasonRequest(question="x" * 51)
    stage = plan(builtin_pipelines()["hierarchical"], dict.fromkeys(agents, "one")).stages[0]
    with pytest.raises(ContextLengthError, match="51 tokens; the model has 50") as caught:
        _ = [item async for item in worker.run(stage, None, (), request)]
    assert caught.value.param == "question"
    assert engine.turns == []


def test_question_that_fits_is_let_through(engine):
    check_question(engine, "x" * engine.max_positions)


async def test_lens_shows_each_step_when_it_is_done_and_all_of_them_in_the_trace(worker):
    items = await collect(worker, stage_of("planner", "judger"), latent_steps=2, trace="lens")
    thoughts = [item for item in items if isinstance(item, AgentThought)]
    assert [(thought.agent, thought.latent_steps) for thought in thoughts] == [
        ("planner", 1),
        ("planner", 2),
    ]
    first, second = (thought.lens for thought in thoughts)
    assert (first.index, first.norm, second.index, second.norm) == (0, 1.0, 1, 2.0)
    assert [(t.id, t.text, t.probability) for t in first.tokens] == [
        (ord("b"), "b", 0.75),
        (ord(" "), " ", 0.25),
    ]
    planner, judger = (item.trace for item in items if isinstance(item, AgentFinished))
    assert planner.lens == (first, second)
    assert judger.lens == ()


async def test_lens_is_empty_unless_it_is_asked_for(worker, engine):
    items = await collect(worker, stage_of("planner", "judger"), latent_steps=2)
    (thought,) = [item for item in items if isinstance(item, AgentThought)]
    assert (thought.latent_steps, thought.lens) == (2, None)
    assert not any(turn.has_lens for turn in engine.turns)
    assert all(item.trace.lens == () for item in items if isinstance(item, AgentFinished))


@pytest.mark.parametrize("mode", ["text", "single"])
async def test_who_takes_no_latent_steps_has_an_empty_lens(worker, mode):
    items = await collect(worker, stage_of("planner", "judger"), mode=mode, trace="lens")
    assert not any(isinstance(item, AgentThought) for item in items)
    assert all(item.trace.lens == () for item in items if isinstance(item, AgentFinished))
