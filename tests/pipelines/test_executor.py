"""The executor: order, overlap, hand-over, results, and nothing left behind on any way out."""

import asyncio
from contextlib import aclosing

import pytest

from latentmas_core.agents.config import AgentConfig
from latentmas_core.errors import EngineError, SegmentError
from latentmas_core.events import (
    AgentFinished,
    AgentStarted,
    AnswerDelta,
    AnswerDone,
    StageFinished,
    StageStarted,
)
from latentmas_core.latent.memory import MergeRule
from latentmas_core.pipelines.builtin import builtin_pipelines
from latentmas_core.pipelines.executor import Executor, result_of
from latentmas_core.pipelines.plan import plan
from latentmas_core.pipelines.spec import NodeSpec, PipelineSpec
from latentmas_core.request import ReasonRequest

TIMEOUT_S = 10.0
HIERARCHICAL = builtin_pipelines()["hierarchical"]
PARALLEL = builtin_pipelines()["parallel"]
DIAMOND = PipelineSpec(
    name="diamond",
    nodes=(
        NodeSpec(name="planner", agent="planner"),
        NodeSpec(name="math", agent="math", after=("planner",)),
        NodeSpec(name="coder", agent="coder", after=("planner",)),
        NodeSpec(name="critic", agent="critic", after=("coder",)),
        NodeSpec(name="judger", agent="judger", after=("math", "critic")),
    ),
)
SPECS = {spec.name: spec for spec in (HIERARCHICAL, PARALLEL, DIAMOND)}
WAYS = [
    {},
    {"carry": "latents"},
    {"handoff": "embeddings"},
    {"handoff": "embeddings", "carry": "latents"},
    {"handoff": "text"},
    {"mode": "text"},
    {"mode": "single"},
]
every_pipeline = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
every_way = pytest.mark.parametrize("fields", WAYS, ids=str)


@pytest.fixture
def executor(runner):
    return Executor(runner)


def together(spec):
    return plan(spec, dict.fromkeys(spec.agents, "one"))


def apart(spec):
    return plan(spec, {agent: f"group-of-{agent}" for agent in spec.agents})


def events_of(executor, laid_out, **fields):
    return executor.run(laid_out, ReasonRequest(question="What is 6 x 7?", **fields))


async def run(executor, laid_out, **fields):
    return await result_of(events_of(executor, laid_out, **fields))


@every_way
@every_pipeline
async def test_fused_and_separate_stages_give_the_same_result(executor, spec, fields):
    fused = await run(executor, together(spec), **fields)
    separate = await run(executor, apart(spec), **fields)
    assert fused.final_answer == separate.final_answer
    assert fused.usage == separate.usage
    by_name = [
        {
            trace.name: trace.model_copy(update={"latency_ms": 0.0, "started_at": 0.0})
            for trace in result.agents
        }
        for result in (fused, separate)
    ]
    assert by_name[0] == by_name[1]


async def test_result_says_how_it_came_about(executor):
    groups = {"planner": "a", "critic": "a", "refiner": "b", "judger": "b"}
    result = await run(executor, plan(HIERARCHICAL, groups), latent_steps=4)
    assert result.id.startswith("reason-")
    assert (result.pipeline, result.mode) == ("hierarchical", "latent")
    assert [trace.name for trace in result.agents] == ["planner", "critic", "refiner", "judger"]
    assert result.final_answer == result.agents[-1].text
    assert result.finish_reason == "length"
    assert result.usage.latent_steps == 3 * 4
    assert result.usage.completion_tokens == len(result.final_answer)
    assert (result.transfer.stages, result.transfer.hops) == (2, 1)
    assert result.latency_ms >= sum(trace.latency_ms for trace in result.agents)


async def test_every_run_has_an_id_of_its_own(executor):
    results = [await run(executor, together(PARALLEL)) for _ in range(2)]
    assert results[0].id != results[1].id
    assert results[0].final_answer == results[1].final_answer


async def test_events_end_with_the_result_and_deltas_make_the_answer(executor):
    events = [event async for event in events_of(executor, apart(PARALLEL))]
    assert isinstance(events[-1], AnswerDone)
    answer = "".join(event.text for event in events if isinstance(event, AnswerDelta))
    assert answer == events[-1].result.final_answer
    started = [event.agent for event in events if isinstance(event, AgentStarted)]
    assert sorted(started[:3]) == ["coder", "math", "medical"]
    assert started[3] == "judger"


async def test_events_tell_when_each_stage_starts_and_what_it_did(executor):
    groups = {"planner": "a", "critic": "a", "refiner": "b", "judger": "b"}
    events = [event async for event in events_of(executor, plan(HIERARCHICAL, groups))]
    stages = [event for event in events if isinstance(event, StageStarted | StageFinished)]
    traces = events[-1].result.stages
    assert stages == [
        StageStarted("planner+critic", "a", ("planner", "critic"), 1),
        StageFinished("planner+critic", traces[0]),
        StageStarted("refiner+judger", "b", ("refiner", "judger"), 1),
        StageFinished("refiner+judger", traces[1]),
    ]
    assert events[0] == stages[0]
    assert events[-2] == stages[-1]


async def test_experts_run_at_the_same_time(executor, engine):
    meeting = asyncio.Barrier(3)
    for expert in ("medical", "math", "coder"):
        engine.before_turn[expert] = meeting.wait
    async with asyncio.timeout(TIMEOUT_S):
        await run(executor, together(PARALLEL))


async def test_stage_starts_when_its_own_parents_are_done_and_waits_for_no_other(executor, engine):
    async def wait_for_critic():
        await engine.has_begun["critic"].wait()

    engine.before_turn["math"] = wait_for_critic
    async with asyncio.timeout(TIMEOUT_S):
        await run(executor, apart(DIAMOND))


async def test_stages_go_on_while_nobody_looks_at_the_events(executor, engine):
    async with aclosing(events_of(executor, apart(HIERARCHICAL))) as events:
        await anext(events)
        async with asyncio.timeout(TIMEOUT_S):
            await engine.has_begun["judger"].wait()


async def test_memories_of_experts_are_merged_in_the_order_of_the_pipeline(executor, engine):
    async def wait_for_coder():
        await engine.has_begun["coder"].wait()

    engine.before_turn["medical"] = wait_for_coder
    await run(executor, together(PARALLEL))
    read = engine.turn_of("judger").memory.memory
    assert [segment.agent for segment in read.segments] == ["medical", "math", "coder"]
    assert {placement.shift for placement in read.placements} == {0}


@pytest.mark.parametrize("source", ["pipeline", "request"])
async def test_merge_rule_of_the_request_goes_before_the_pipelines(executor, engine, source):
    spec, fields = PARALLEL, {"merge": "consecutive"}
    if source == "pipeline":
        spec, fields = PARALLEL.model_copy(update={"merge": MergeRule.CONSECUTIVE}), {}
    await run(executor, together(spec), **fields)
    shifts = [p.shift for p in engine.turn_of("judger").memory.memory.placements]
    assert shifts[0] == 0
    assert shifts[1] > 0


async def test_shared_ancestor_is_read_once_after_a_diamond(executor, engine):
    await run(executor, together(DIAMOND))
    read = [segment.agent for segment in engine.turn_of("judger").memory.memory.segments]
    assert read == ["planner", "math", "coder", "critic"]


async def test_forbidden_merge_is_refused_and_nothing_is_left(executor):
    with pytest.raises(SegmentError, match="share 1 segment"):
        await run(executor, together(DIAMOND), merge="consecutive")


async def test_memory_is_released_once_its_last_reader_has_finished(executor, engine):
    go_on = asyncio.Event()
    engine.before_turn["math"] = go_on.wait
    seen = []
    async with aclosing(events_of(executor, apart(DIAMOND))) as events:
        async for event in events:
            if isinstance(event, AgentFinished) and event.agent in ("coder", "math"):
                for _ in range(10):
                    await asyncio.sleep(0)
                held = [memory.memory.segments for memory in engine.live.values()]
                seen.append([segments[0].agent for segments in held if len(segments) == 1])
                go_on.set()
    assert seen == [["planner"], []]


async def test_text_of_all_ancestors_reaches_the_speaker_once_and_in_order(executor, engine):
    await run(executor, apart(DIAMOND), mode="text")
    prompt = engine.prompt_of("judger")
    places = [prompt.index(f"{name}: {name} says") for name in ("planner", "coder", "critic")]
    assert places == sorted(places)
    assert prompt.count("planner: planner says") == 1
    assert "math: math says" in prompt
    assert "math: math says" not in engine.prompt_of("critic")


@every_pipeline
async def test_single_mode_runs_nobody_but_the_speaker(executor, engine, spec):
    result = await run(executor, together(spec), mode="single")
    assert [turn.agent for turn in engine.turns] == ["judger"]
    assert [trace.name for trace in result.agents] == ["judger"]
    assert (result.pipeline, result.transfer.stages) == (spec.name, 1)


async def test_agent_may_take_two_turns(executor, engine):
    spec = PipelineSpec.chain("loop", ["planner", "critic", "planner", "judger"])
    result = await run(executor, together(spec))
    assert [trace.name for trace in result.agents] == ["planner", "critic", "planner-2", "judger"]
    assert result.agents[2].role == "problem decomposition"


async def test_speaker_may_think_before_it_speaks(executor, engine, agents):
    agents["judger"] = AgentConfig.judger(latent_steps=2)
    result = await run(executor, together(HIERARCHICAL))
    assert result.agents[-1].latent_steps == 2
    assert result.usage.latent_steps == 3 * 7 + 2


@every_way
@every_pipeline
@pytest.mark.parametrize("culprit", ["planner", "coder", "critic", "judger"])
async def test_failure_is_raised_as_it_was_and_nothing_is_left(
    executor, engine, spec, fields, culprit
):
    error = EngineError("the step failed")

    async def fail():
        raise error

    engine.before_turn[culprit] = fail
    if culprit not in spec.agents or (fields.get("mode") == "single" and culprit != "judger"):
        await run(executor, apart(spec), **fields)
        return
    with pytest.raises(EngineError) as caught:
        await run(executor, apart(spec), **fields)
    assert caught.value is error
    engine.check_idle()


async def test_first_failure_ends_the_siblings_that_wait(executor, engine):
    async def fail():
        await engine.has_begun["medical"].wait()
        raise EngineError("coder fell")

    engine.before_turn["coder"] = fail
    engine.before_turn["medical"] = asyncio.Event().wait  # for ever
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(EngineError, match="coder fell"):
            await run(executor, together(PARALLEL))
    engine.check_idle()


async def test_stage_that_is_cancelled_from_below_fails_the_run(executor, engine):
    async def cancel():
        raise asyncio.CancelledError

    engine.before_turn["critic"] = cancel
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(EngineError, match="'critic' was cancelled"):
            await run(executor, apart(HIERARCHICAL))


@every_way
@every_pipeline
@pytest.mark.parametrize("layout", [together, apart])
async def test_cancelling_at_any_moment_leaves_nothing(executor, engine, spec, fields, layout):
    num_moments = 0
    while True:
        task = asyncio.create_task(run(executor, layout(spec), **fields))
        for _ in range(num_moments):
            await asyncio.sleep(0)
        if task.done():
            break
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        engine.check_idle()
        num_moments += 1
    assert num_moments > 5
    engine.check_idle()


@every_pipeline
async def test_cancelling_twice_leaves_nothing(executor, engine, spec):
    for num_moments in range(5, 60, 3):
        task = asyncio.create_task(run(executor, apart(spec)))
        for _ in range(num_moments):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        for _ in range(50):  # a run that was not waited for ends by itself
            await asyncio.sleep(0)
        engine.check_idle()


@every_way
async def test_closing_the_events_at_any_of_them_leaves_nothing(executor, engine, fields):
    all_events = [event async for event in events_of(executor, apart(DIAMOND), **fields)]
    for num_events in range(len(all_events) + 1):
        async with aclosing(events_of(executor, apart(DIAMOND), **fields)) as events:
            for _ in range(num_events):
                await anext(events)
        engine.check_idle()


async def test_many_runs_share_an_executor(executor):
    results = await asyncio.gather(
        *(run(executor, together(spec), **way) for spec in SPECS.values() for way in WAYS)
    )
    assert len({result.id for result in results}) == len(results)
