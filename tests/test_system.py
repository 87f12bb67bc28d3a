"""The facade: its names, what it refuses, and that it gives everything back."""

import asyncio
import subprocess
import sys
from contextlib import aclosing
from itertools import count

import pytest
from transformers import AutoTokenizer

import latentmas_core
from latentmas_core import (
    AgentConfig,
    ConfigError,
    ContextLengthError,
    EngineConfig,
    EngineError,
    LatentMASSystem,
    NotFoundError,
    PipelineError,
    PipelineSpec,
)
from latentmas_core.agents.presets import PRESETS
from latentmas_core.events import AgentStarted, AnswerDelta, AnswerDone, StageStarted
from tests.pipelines.fake_engine import FakeEngine

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture
def engine(tokenizer):
    engine = FakeEngine(tokenizer)
    yield engine
    engine.check_idle()


@pytest.fixture
def system(engine):
    with LatentMASSystem.from_engine(engine, latent_steps=5) as system:
        yield system.add_default_agents()


def test_run_answers_with_the_default_pipeline(system):
    result = system.run(question=QUESTION)
    assert (result.pipeline, result.mode) == ("hierarchical", "latent")
    assert result.final_answer.startswith("judger says")
    assert [agent.name for agent in result.agents] == ["planner", "critic", "refiner", "judger"]
    assert result.usage.latent_steps == 3 * 5


@pytest.mark.parametrize("mode", ["latent", "text", "single"])
@pytest.mark.parametrize("pipeline", ["hierarchical", "sequential", "parallel"])
def test_every_pipeline_runs_in_every_mode(system, pipeline, mode):
    result = system.run(QUESTION, pipeline=pipeline, mode=mode)
    assert (result.pipeline, result.mode) == (pipeline, mode)
    assert result.final_answer.startswith("judger says")


def test_sequential_over_the_agents_of_the_system_lets_the_judger_speak(system):
    result = system.run(QUESTION, pipeline="sequential")
    names = [agent.name for agent in result.agents]
    assert names == [name for name in PRESETS if name != "judger"] + ["judger"]


def test_list_of_agents_is_a_chain_in_exactly_that_order(system):
    result = system.run(QUESTION, pipeline=["math", "planner", "coder"])
    assert [agent.name for agent in result.agents] == ["math", "planner", "coder"]
    assert result.pipeline == "sequential"


def test_pipeline_of_the_users_own_runs_added_or_not(system):
    system.add_agent(AgentConfig(name="poet", role="rhymes"))
    spec = PipelineSpec.chain("verse", ["planner", "poet"])
    direct = system.run(QUESTION, pipeline=spec)
    named = system.add_pipeline(spec).run(QUESTION, pipeline="verse")
    assert direct.final_answer == named.final_answer
    assert "verse" in system.pipelines


def test_fields_of_the_request_reach_the_engine(system, engine):
    system.run(QUESTION, latent_steps=2, max_tokens=9, temperature=0.0, stop=["\n"])
    assert engine.turn_of("planner").num_latent_steps == 2
    sampling = engine.turn_of("judger").sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.stop) == (9, 0.0, ("\n",))


def test_same_seed_repeats_a_run_and_another_does_not(system):
    answers = [system.run(QUESTION, mode="text", seed=seed).final_answer for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_stream_tells_everything_in_order(system):
    events = list(system.stream(question=QUESTION))
    assert isinstance(events[0], StageStarted)
    assert isinstance(events[1], AgentStarted)
    assert isinstance(events[-1], AnswerDone)
    answer = "".join(event.text for event in events if isinstance(event, AnswerDelta))
    assert answer == events[-1].result.final_answer


def test_leaving_a_stream_frees_everything(system, engine):
    for event in system.stream(QUESTION, pipeline="parallel"):
        if isinstance(event, AnswerDelta):
            break
    engine.check_idle()


def test_run_many_keeps_the_order_of_the_questions(system):
    questions = [f"What is {number} + 1?" for number in range(6)]
    results = system.run_many(questions, pipeline="parallel", mode="text")
    alone = [system.run(question, pipeline="parallel", mode="text") for question in questions]
    assert [one.final_answer for one in results] == [one.final_answer for one in alone]


def test_run_many_asks_all_questions_at_the_same_time(system, engine):
    meeting = asyncio.Barrier(3)  # two questions would wait for ever
    engine.before_turn["judger"] = meeting.wait
    assert len(system.run_many([QUESTION] * 3, mode="single")) == 3


def test_run_many_raises_the_first_error_after_freeing_the_others(system, engine):
    calls = count(1)

    async def fail():
        if next(calls) == 3:
            raise EngineError("third one fell")
        await asyncio.Event().wait()  # for ever

    engine.before_turn["critic"] = fail
    with pytest.raises(EngineError, match="third one fell"):
        system.run_many([QUESTION] * 4)
    engine.check_idle()


def test_run_many_of_nothing_is_nothing(system):
    assert system.run_many([]) == []


async def test_blocking_calls_work_beside_a_running_loop(system):
    assert system.run(QUESTION).final_answer
    assert list(system.stream(QUESTION))
    assert system.stats().num_memories == 0


async def test_asynchronous_calls_run_in_the_callers_loop(system):
    result = await system.arun(QUESTION)
    async with aclosing(system.astream(QUESTION)) as events:
        streamed = [event async for event in events]
    assert streamed[-1].result.final_answer == result.final_answer
    many = await system.arun_many([QUESTION, QUESTION])
    assert [one.final_answer for one in many] == [result.final_answer] * 2


@pytest.mark.parametrize(
    ("options", "kind", "param", "message"),
    [
        ({"question": ""}, ConfigError, "question", "question got '': .*at least 1"),
        ({"question": "  "}, ConfigError, "question", "at least 1"),
        ({"question": None}, ConfigError, "question", "question got None"),
        ({"pipeline": "circle"}, NotFoundError, "pipeline", "Known: hierarchical, parallel, seq"),
        ({"pipeline": ["planner", "ghost"]}, NotFoundError, "agent", "'ghost'.*planner, critic"),
        ({"pipeline": []}, PipelineError, "pipeline", "has no node"),
        ({"mode": "psychic"}, ConfigError, "mode", "got 'psychic'.*'latent', 'text' or 'single'"),
        ({"latent_steps": -1}, ConfigError, "latent_steps", "latent_steps got -1"),
        ({"latent_steps": 513}, ConfigError, "latent_steps", "latent_steps got 513.*512"),
        ({"temperature": 9}, ConfigError, "temperature", "temperature got 9.*2"),
        ({"top_p": 0}, ConfigError, "top_p", "top_p got 0"),
        ({"max_tokens": 0}, ConfigError, "max_tokens", "max_tokens got 0"),
        ({"handoff": "mail"}, ConfigError, "handoff", "'kv', 'embeddings' or 'text'"),
        ({"colour": "red"}, ConfigError, "colour", "unknown field 'colour'. Known.*latent_steps"),
    ],
)
@pytest.mark.parametrize("call", ["run", "stream", "astream"])
def test_wrong_input_is_refused_at_once_by_name(
    system, engine, call, options, kind, param, message
):
    with pytest.raises(kind, match=message) as caught:
        getattr(system, call)(**{"question": QUESTION} | options)
    assert caught.value.param == param
    assert engine.turns == []
    assert system.run(QUESTION).final_answer


def test_long_values_are_cut_in_messages(system):
    with pytest.raises(ConfigError) as caught:
        system.run(QUESTION, mode="x" * 10_000)
    assert len(caught.value.message) < 300


def test_one_wrong_question_of_many_is_refused_before_any_runs(system, engine):
    with pytest.raises(ConfigError, match="question got ''"):
        system.run_many([QUESTION, ""])
    assert engine.turns == []


def test_one_string_is_no_list_of_questions(system):
    with pytest.raises(ConfigError, match="one string"):
        system.run_many(QUESTION)


def test_question_longer_than_the_model_is_refused_with_both_numbers(tokenizer):
    engine = FakeEngine(tokenizer, max_positions=600)
    with LatentMASSystem.from_engine(engine) as system:
        system.add_default_agents()
        with pytest.raises(ContextLengthError, match="601 tokens; the model has 600"):
            system.run("x" * 601)
        assert system.run("Short?", mode="single").final_answer
    engine.check_idle()


def test_system_without_agents_says_whom_it_lacks(engine):
    with LatentMASSystem.from_engine(engine) as system:
        with pytest.raises(NotFoundError, match=r"needs agent 'planner'.*Known agents: none"):
            system.run(QUESTION)
        with pytest.raises(PipelineError, match="'sequential' has no node"):
            system.run(QUESTION, pipeline="sequential")


def test_agents_are_added_once(system):
    with pytest.raises(ConfigError, match="'planner' exists already"):
        system.add_agent(AgentConfig.planner())


def test_default_agents_leave_the_users_own_in_place(engine):
    with LatentMASSystem.from_engine(engine) as system:
        own = AgentConfig.planner(temperature=0.0)
        system.add_agent(own).add_agent(AgentConfig.critic()).add_default_agents()
        assert system.agents["planner"] is own
        assert set(system.agents) == set(PRESETS)


@pytest.mark.parametrize("name", ["hierarchical", "sequential", "parallel", "mine"])
def test_pipelines_are_added_once(system, name):
    system.add_pipeline(PipelineSpec.chain("mine", ["planner"]))
    with pytest.raises(ConfigError, match=f"'{name}' exists already"):
        system.add_pipeline(PipelineSpec.chain(name, ["planner"]))


def test_agents_and_pipelines_cannot_be_changed_from_outside(system):
    for view in (system.agents, system.pipelines):
        with pytest.raises(TypeError):
            view["x"] = None


def test_closed_system_refuses_and_leaves_a_borrowed_engine_alone(engine):
    system = LatentMASSystem.from_engine(engine).add_default_agents()
    system.close()
    system.close()
    assert not engine.is_closed
    with pytest.raises(EngineError, match="closed"):
        system.run(QUESTION)
    with pytest.raises(EngineError, match="closed"):
        next(iter(system.stream(QUESTION)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int3"}, "dtype got 'int3'.*'bfloat16'"),
        ({"latent_steps": 10.5}, "latent_steps is 10.5; allowed are 0 to 128, in whole steps"),
        ({"latent_steps": -1}, "latent_steps is -1; allowed are 0 to 128"),
        ({"latent_steps": 129}, "latent_steps is 129; allowed are 0 to 128"),
        (
            {"latent_steps": 9, "engine_config": EngineConfig(max_latent_steps=8)},
            "latent_steps is 9; allowed are 0 to 8",
        ),
    ],
)
def test_wrong_options_of_the_system_are_refused_before_a_model_is_loaded(options, message):
    with pytest.raises(ConfigError, match=message):
        LatentMASSystem(**options)


def test_all_public_names_exist():
    for name in latentmas_core.__all__:
        assert getattr(latentmas_core, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_that"):
        _ = latentmas_core.nothing_like_that


def test_errors_and_options_are_imported_without_torch():
    code = (
        "import sys, latentmas_core.errors, latentmas_core.config;sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
