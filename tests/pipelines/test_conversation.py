"""A conversation in a pipeline: who is shown it, who is told of tools, and how long it may be."""

import pytest
from pydantic import ValidationError

from latentmas_core.chat import MAX_JSON_DEPTH, ChatMessage, ToolCall, ToolSpec
from latentmas_core.errors import ConfigError, ContextLengthError
from latentmas_core.logprobs import AnswerToken
from latentmas_core.pipelines.plan import plan
from latentmas_core.pipelines.retries import AnswerSoFar
from latentmas_core.pipelines.spec import PipelineSpec
from latentmas_core.pipelines.stage_worker import Roster, StageWorker
from latentmas_core.request import ReasonRequest
from tests.pipelines.fake_engine import FakeEngine
from tests.scripted_model import make_scripted_tokenizer

CALL = ToolCall(name="weather", arguments={"city": "Paris"}, call_id="c1")
CALLING = ChatMessage(role="assistant", tool_calls=(CALL,))
RESULT = ChatMessage(role="tool", content="It rains.", tool_call_id="c1")
TALK = {
    "history": (
        ChatMessage(role="user", content="Hello there."),
        ChatMessage(role="assistant", content="How can I help?"),
    ),
    "tool_messages": (CALLING, RESULT),
    "tools": (ToolSpec(name="weather", description="Tells the weather."),),
}


@pytest.fixture
def engine():
    engine = FakeEngine(make_scripted_tokenizer())
    yield engine
    engine.check_idle()


@pytest.fixture
def worker(engine, agents):
    return StageWorker(engine, Roster(agents, 2))


async def run(worker, *names, **fields):
    spec = PipelineSpec.chain("test", names)
    (stage,) = plan(spec, dict.fromkeys(names, "one")).stages
    request = ReasonRequest(question="What now?", **fields)
    return [item async for item in worker.run(stage, None, (), request)]


@pytest.mark.parametrize("fields", [{}, {"mode": "text"}, {"handoff": "embeddings"}], ids=str)
async def test_all_see_the_conversation_and_only_the_speaker_hears_of_tools(worker, engine, fields):
    await run(worker, "planner", "critic", "judger", **TALK, **fields)
    sees_question = {
        name for name in ("planner", "critic", "judger") if "What now?" in said(engine, name)
    }
    assert sees_question == {"planner", "judger"} | ({"critic"} if "mode" in fields else set())
    for name in sees_question:
        for text in ("Hello there.", "How can I help?", "It rains.", '"city": "Paris"'):
            assert said(engine, name).count(text) == 1, (name, text)
    assert "Tells the weather." in said(engine, "judger")
    assert "Tells the weather." not in said(engine, "planner") + said(engine, "critic")


def said(engine, name):
    return engine.prompt_of(name)


async def test_stop_and_logprobs_are_the_speakers_alone(worker, engine):
    await run(worker, "planner", "judger", mode="text", logprobs=3)
    assert engine.turn_of("planner").sampling.logprobs is None
    assert engine.turn_of("judger").sampling.logprobs == 3


async def test_tools_that_the_template_does_not_show_are_refused(tokenizer, agents):
    engine = FakeEngine(tokenizer)
    worker = StageWorker(engine, Roster(agents, 2))
    with pytest.raises(ConfigError, match="tools cannot be used"):
        await run(worker, "judger", tools=TALK["tools"])
    engine.check_idle()


@pytest.mark.parametrize("place", ["history", "tools"])
async def test_conversation_that_no_position_could_hold_is_refused_unread(agents, place):
    engine = FakeEngine(make_scripted_tokenizer(), max_positions=20)
    worker = StageWorker(engine, Roster(agents, 1))
    long = "x" * 20 * 128
    fields = {
        "history": {"history": [ChatMessage(role="user", content=long)]},
        "tools": {"tools": [ToolSpec(name="a", description=long)]},
    }
    with pytest.raises(ContextLengthError, match="2560 are the most") as caught:
        await run(worker, "judger", **fields[place])
    assert caught.value.param == "messages"


USER = ChatMessage(role="user", content="a")


def nested(levels):
    value = {}
    for _ in range(levels):
        value = {"a": [value]}
    return value


@pytest.mark.parametrize(
    "fields",
    [
        {"history": [RESULT]},
        {"tool_messages": [USER]},
        {"tool_messages": [CALLING]},
        {"tool_messages": [RESULT]},
        {"history": [{"role": "user", "content": "a", "tool_calls": [CALL]}]},
        {"history": [{"role": "user", "content": "a", "tool_call_id": "x"}]},
        {"history": [{"role": "user", "content": "\ud800"}]},
        {"tools": [{"name": "a", "parameters": {"a": float("nan")}}]},
        {"tools": [{"name": "a", "parameters": {"\ud800": 1}}]},
        {"tools": [{"name": "a", "parameters": nested(MAX_JSON_DEPTH)}]},
        {"tools": [{"name": "a b"}]},
        {"logprobs": 21},
    ],
    ids=lambda fields: f"{next(iter(fields))}",
)
def test_conversation_that_cannot_be_meant_is_refused(fields):
    with pytest.raises(ValidationError, match=next(iter(fields))[:4]):
        ReasonRequest(question="What now?", **fields)


def test_schema_of_usual_depth_is_taken():
    parameters = nested(MAX_JSON_DEPTH // 2 - 1)
    tools = [ToolSpec(name="a", parameters=parameters)]
    assert ReasonRequest(question="What now?", tools=tools).tools[0].parameters == parameters


def test_reader_of_a_second_attempt_gets_each_token_once():
    tokens = tuple(AnswerToken(token=c, logprob=-1.0, bytes=(ord(c),)) for c in "abcd")
    answer = AnswerSoFar()
    answer.begin()
    assert answer.add_tokens(tokens[:3]) == tokens[:3]
    answer.begin()
    assert answer.add_tokens(tokens[:2]) == ()
    assert answer.add_tokens(tokens[2:]) == tokens[3:]
