"""Stages that are lost, experts that fail, and time that runs out: what the executor does then."""

import asyncio
from contextlib import aclosing

import pytest

from latentmas_core.errors import DeadlineError, EngineError, LostError, MemoryLostError
from latentmas_core.events import (
    AnswerDelta,
    AnswerDone,
    StageFinished,
    StageGivenUp,
    StageRetried,
    StageStarted,
)
from latentmas_core.pipelines.builtin import builtin_pipelines
from latentmas_core.pipelines.executor import Executor, result_of
from latentmas_core.pipelines.plan import plan
from latentmas_core.pipelines.retries import AnswerSoFar, RetryPolicy
from latentmas_core.pipelines.spec import NodeSpec, PipelineSpec
from latentmas_core.request import OnExpertFailure, ReasonRequest
from latentmas_core.result import StageStatus

TIMEOUT_S = 10.0
RETRIES = RetryPolicy(max_attempts=3, delay_s=0.0)
HIERARCHICAL = builtin_pipelines()["hierarchical"]
PARALLEL = builtin_pipelines()["parallel"]
DIAMOND = PipelineSpec(
    name="diamond",
    nodes=(
        NodeSpec(name="planner", agent="planner"),
        NodeSpec(name="math", agent="math", after=("planner",)),
        NodeSpec(name="coder", agent="coder", after=("planner",)),
        NodeSpec(name="judger", agent="judger", after=("math", "coder")),
    ),
)


class Losses:
    """Raises what it was told to at the start of an agent's turns, one error a turn."""

    def __init__(self, engine):
        self._engine = engine

    def at(self, agent, *errors):
        rest = list(errors)

        async def fail():
            if rest:
                raise rest.pop(0)

        self._engine.before_turn[agent] = fail


@pytest.fixture
def losses(engine):
    return Losses(engine)


@pytest.fixture
def executor(runner):
    return Executor(runner, retries=RETRIES)


def apart(spec):
    return plan(spec, {agent: f"group-of-{agent}" for agent in spec.agents})


def events_of(executor, spec, **fields):
    defaults = {"question": "What is 6 x 7?", "temperature": 0.0, "seed": 1}
    request = ReasonRequest.model_validate(defaults | fields)
    return executor.run(apart(spec), request)


async def run(executor, spec, **fields):
    async with asyncio.timeout(TIMEOUT_S):
        return await result_of(events_of(executor, spec, **fields))


def stage_of(result, name):
    (stage,) = [stage for stage in result.stages if stage.name == name]
    return stage


def started(engine):
    return [turn.agent for turn in engine.turns]


@pytest.mark.parametrize("spec", [HIERARCHICAL, DIAMOND], ids=lambda spec: spec.name)
@pytest.mark.parametrize("victim", ["planner", "judger"])
@pytest.mark.parametrize("fields", [{}, {"handoff": "embeddings"}, {"mode": "text"}], ids=str)
async def test_lost_stage_runs_again_from_its_inputs_and_the_answer_is_the_same(
    executor, engine, losses, spec, victim, fields
):
    undisturbed = await run(executor, spec, **fields)
    engine.turns.clear()
    losses.at(victim, LostError("a replica was lost"))
    result = await run(executor, spec, **fields)
    assert result.final_answer == undisturbed.final_answer
    assert sorted(started(engine)) == sorted([*spec.agents, victim])
    assert stage_of(result, victim).attempts == 2
    assert stage_of(result, victim).failures == ("a replica was lost",)
    assert {stage.attempts for stage in result.stages if stage.name != victim} == {1}


async def test_retries_are_told_as_they_happen(executor, losses):
    losses.at("critic", LostError("first"), LostError("second"))
    events = [event async for event in events_of(executor, HIERARCHICAL)]
    retried = [event for event in events if isinstance(event, StageRetried)]
    assert retried == [StageRetried("critic", 2, "first"), StageRetried("critic", 3, "second")]
    started = [e.attempt for e in events if isinstance(e, StageStarted) and e.stage == "critic"]
    assert started == [1, 2, 3]
    (done,) = [e for e in events if isinstance(e, StageFinished) and e.stage == "critic"]
    assert (done.trace.attempts, done.trace.failures) == (3, ("first", "second"))


async def test_stage_that_is_lost_again_and_again_fails_with_the_last_reason(
    executor, engine, losses
):
    losses.at("critic", *(LostError(f"loss {number}") for number in range(1, 9)))
    with pytest.raises(LostError, match="loss 3"):
        await run(executor, HIERARCHICAL)
    assert started(engine).count("critic") == 3


async def test_error_that_another_attempt_would_meet_again_is_not_retried(executor, engine, losses):
    losses.at("critic", EngineError("overloaded"))
    with pytest.raises(EngineError, match="overloaded"):
        await run(executor, HIERARCHICAL)
    assert started(engine).count("critic") == 1


async def test_executor_without_retries_raises_the_first_loss(runner, losses):
    losses.at("critic", LostError("gone"))
    with pytest.raises(LostError, match="gone"):
        await run(Executor(runner), HIERARCHICAL)


async def test_stage_that_is_cancelled_from_below_is_tried_again(executor, engine):
    has_failed = False

    async def cancel_once():
        nonlocal has_failed
        if not has_failed:
            has_failed = True
            raise asyncio.CancelledError

    engine.before_turn["critic"] = cancel_once
    result = await run(executor, HIERARCHICAL)
    assert stage_of(result, "critic").attempts == 2


async def test_those_who_made_a_lost_memory_run_again_first(executor, engine, losses):
    undisturbed = await run(executor, HIERARCHICAL)
    engine.turns.clear()
    losses.at("refiner", MemoryLostError("the node is gone"))
    result = await run(executor, HIERARCHICAL)
    assert result.final_answer == undisturbed.final_answer
    assert started(engine) == [
        "planner",
        "critic",
        "refiner",
        "planner",
        "critic",
        "refiner",
        "judger",
    ]
    assert [stage.attempts for stage in result.stages] == [2, 2, 2, 1]
    assert result.usage == undisturbed.usage


async def test_two_readers_that_miss_one_memory_have_it_made_once_more(executor, engine, losses):
    losses.at("math", MemoryLostError("the node is gone"))
    losses.at("coder", MemoryLostError("the node is gone"))
    result = await run(executor, DIAMOND)
    assert started(engine).count("planner") == 2
    assert [stage.attempts for stage in result.stages] == [2, 2, 2, 1]


@pytest.mark.parametrize("unlucky", ["math", "coder"])
async def test_ancestor_that_only_one_reader_misses_is_still_read_once_by_the_next(
    executor, engine, losses, unlucky
):
    undisturbed = await run(executor, DIAMOND)
    engine.turns.clear()
    losses.at(unlucky, MemoryLostError("the node is gone"))
    result = await run(executor, DIAMOND)
    read = [segment.agent for segment in engine.turn_of("judger").memory.memory.segments]
    assert sorted(read) == ["coder", "math", "planner"]
    assert result.final_answer == undisturbed.final_answer


async def test_reader_of_several_memories_has_all_of_them_made_again(executor, engine, losses):
    losses.at("judger", MemoryLostError("the node is gone"))
    result = await run(executor, DIAMOND)
    assert [stage.attempts for stage in result.stages] == [2, 2, 2, 2]


async def test_maker_of_a_lost_memory_may_be_lost_itself(executor, engine, losses):
    rest = [None, LostError("its replica too")]

    async def lose_the_second_turn():
        error = rest.pop(0) if rest else None
        if error is not None:
            raise error

    engine.before_turn["planner"] = lose_the_second_turn
    losses.at("critic", MemoryLostError("the node is gone"))
    result = await run(executor, HIERARCHICAL)
    assert stage_of(result, "planner").attempts == 3
    assert stage_of(result, "critic").attempts == 2


@pytest.mark.parametrize("spec", [HIERARCHICAL, DIAMOND], ids=lambda spec: spec.name)
async def test_cancelling_at_any_moment_of_a_renewal_leaves_nothing(executor, engine, losses, spec):
    num_moments = 0
    while True:
        losses.at("judger", MemoryLostError("the node is gone"), LostError("its replica too"))
        losses.at("planner", LostError("a replica was lost"))
        task = asyncio.create_task(run(executor, spec))
        for _ in range(num_moments):
            await asyncio.sleep(0)
        if task.done():
            break
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        engine.check_idle()
        num_moments += 1
    assert num_moments > 30


async def test_reader_gets_each_word_of_an_answer_that_was_begun_twice_once(executor, engine):
    deltas = []
    has_failed = asyncio.Event()
    speak = engine.run

    async def break_off(turn):
        async with aclosing(speak(turn)) as events:
            async for event in events:
                yield event
                if turn.agent == "judger" and hasattr(event, "text") and not has_failed.is_set():
                    has_failed.set()
                    raise LostError("a replica was lost in the middle of a word")

    engine.run = break_off
    async with aclosing(events_of(executor, PARALLEL)) as events:
        async for event in events:
            if isinstance(event, AnswerDelta):
                deltas.append(event.text)
            if isinstance(event, AnswerDone):
                result = event.result
    assert has_failed.is_set()
    assert "".join(deltas) == result.final_answer
    assert all(deltas)


def test_second_attempt_that_says_something_else_is_an_error():
    answer = AnswerSoFar()
    answer.begin()
    assert answer.add("It is ") == "It is "
    answer.begin()
    assert answer.add("It") == ""
    assert answer.add(" is 4") == "4"
    answer.end()
    answer.begin()
    with pytest.raises(EngineError, match="chose other words"):
        answer.add("It was")


def test_second_attempt_that_says_less_is_an_error():
    answer = AnswerSoFar()
    answer.begin()
    answer.add("It is 42")
    answer.begin()
    assert answer.add("It is") == ""
    with pytest.raises(EngineError, match="chose other words"):
        answer.end()


async def test_attempts_of_a_request_without_a_seed_draw_the_same_numbers(executor, engine, losses):
    losses.at("judger", LostError("a replica was lost"))
    await run(executor, PARALLEL, temperature=0.9, seed=None)
    seeds = [turn.sampling.seed for turn in engine.turns if turn.agent == "judger"]
    assert len(seeds) == 2
    assert seeds[0] == seeds[1] is not None


# Experts that fail for good


def continuing(spec):
    return spec.model_copy(update={"on_expert_failure": OnExpertFailure.CONTINUE})


@pytest.mark.parametrize("source", ["pipeline", "request"])
async def test_answer_is_given_with_the_experts_that_came_and_says_so(
    executor, engine, losses, source
):
    losses.at("math", EngineError("math fell"))
    spec, fields = PARALLEL, {"on_expert_failure": "continue"}
    if source == "pipeline":
        spec, fields = continuing(PARALLEL), {}
    result = await run(executor, spec, **fields)
    assert result.failed_agents == ("math",)
    assert [trace.name for trace in result.agents] == ["medical", "coder", "judger"]
    assert stage_of(result, "math").status is StageStatus.FAILED
    assert stage_of(result, "math").failures == ("math fell",)
    read = [segment.agent for segment in engine.turn_of("judger").memory.memory.segments]
    assert read == ["medical", "coder"]


async def test_request_may_ask_to_fail_where_the_pipeline_goes_on(executor, losses):
    losses.at("math", EngineError("math fell"))
    with pytest.raises(EngineError, match="math fell"):
        await run(executor, continuing(PARALLEL), on_expert_failure="fail")


async def test_expert_that_is_given_up_is_told_as_it_happens(executor, losses):
    losses.at("math", EngineError("math fell"))
    events = [event async for event in events_of(executor, continuing(PARALLEL))]
    assert StageGivenUp("math", ("math",), "math fell") in events


async def test_words_of_the_experts_that_came_reach_the_judger(executor, engine, losses):
    losses.at("math", EngineError("math fell"))
    await run(executor, continuing(PARALLEL), mode="text")
    prompt = engine.prompt_of("judger")
    assert "coder says" in prompt
    assert "math says" not in prompt


async def test_expert_is_tried_again_before_it_is_given_up(executor, engine, losses):
    losses.at("math", *(LostError(f"loss {number}") for number in range(1, 9)))
    result = await run(executor, continuing(PARALLEL))
    assert stage_of(result, "math").attempts == 3
    assert stage_of(result, "math").failures == ("loss 1", "loss 2", "loss 3")


@pytest.mark.parametrize("kind", [EngineError, LostError])
@pytest.mark.parametrize("spec", [PARALLEL, HIERARCHICAL, DIAMOND], ids=lambda spec: spec.name)
async def test_run_of_which_nobody_is_left_fails_with_the_first_reason(
    executor, engine, losses, spec, kind
):
    for agent in spec.agents:
        if agent != "judger":
            losses.at(agent, *(kind(f"{agent} fell") for _ in range(9)))
    with pytest.raises(kind, match=f"{spec.agents[0]} fell"):
        await run(executor, continuing(spec))
    assert "judger" not in started(engine)


async def test_speaker_is_never_done_without(executor, losses):
    losses.at("judger", EngineError("judger fell"))
    with pytest.raises(EngineError, match="judger fell"):
        await run(executor, continuing(PARALLEL))


# Time


async def test_run_that_takes_too_long_is_ended_and_nothing_is_left(executor, engine):
    engine.before_turn["critic"] = asyncio.Event().wait  # for ever
    with pytest.raises(DeadlineError, match=r"0\.05 s \(timeout_s\)"):
        await run(executor, HIERARCHICAL, timeout_s=0.05)


@pytest.mark.parametrize("source", ["pipeline", "request"])
async def test_stage_that_takes_too_long_fails_alone(executor, engine, source):
    engine.before_turn["math"] = asyncio.Event().wait  # for ever
    spec, fields = continuing(PARALLEL), {"stage_timeout_s": 0.1}
    if source == "pipeline":
        spec, fields = spec.model_copy(update=fields), {}
    result = await run(executor, spec, **fields)
    assert result.failed_agents == ("math",)
    assert "'math' did not end within 0.1 s" in stage_of(result, "math").failures[0]


async def test_engine_is_told_when_a_turn_has_to_end(executor, engine):
    await run(executor, HIERARCHICAL)
    assert {turn.ends_at for turn in engine.turns} == {None}
    engine.turns.clear()
    await run(executor, HIERARCHICAL, timeout_s=60.0)
    assert None not in {turn.ends_at for turn in engine.turns}


async def test_stages_tell_when_they_worked(executor):
    result = await run(executor, PARALLEL)
    *experts, judger = result.stages
    assert all(0 <= stage.started_ms <= stage.finished_ms for stage in result.stages)
    assert judger.started_ms >= max(stage.finished_ms for stage in experts)
    assert judger.finished_ms <= result.latency_ms
    assert [stage.group for stage in experts] == [f"group-of-{stage.name}" for stage in experts]
