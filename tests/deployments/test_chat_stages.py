"""OpenAI's calls over groups with real engines in this process: replicas that are lost in the
middle of an answer, and models that have no place for a system message."""

import json
from contextlib import aclosing
from dataclasses import replace

import pytest

from deployments.args import AppArgs
from deployments.budget import TransferBudget
from deployments.reasoner import Reasoner
from latentmas_core.engine.engine import Engine
from latentmas_core.errors import LostError
from latentmas_core.events import AnswerDelta
from tests.agents.test_conversation_prompts import DROPS_SYSTEM, REFUSES_SYSTEM
from tests.deployments.http_calls import ask, assert_error
from tests.deployments.keys import ALICE, client_of, make_access, make_app
from tests.deployments.local_groups import LocalTransport, make_servers
from tests.deployments.sse import parse_events
from tests.scripted_model import ANSWER, TEMPLATE, make_scripted_model

SAID = "".join(ANSWER)
PIPELINE, BASE = "latentmas/hierarchical", "latentmas/chat"
USER = {"role": "user", "content": "What is the capital of France?"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "weather"}}
MAX_ATTEMPTS = 3
THINKERS = {"name": "thinkers", "agents": ["planner", "critic"]}
DECIDERS = {"name": "deciders", "agents": ["refiner", "judger"]}


class Transport(LocalTransport):
    """Loses the speaker's replica after ``num_heard`` pieces of its answer, ``num_losses`` times;
    ``other_words`` are what an attempt behind a loss says."""

    def __init__(self):
        super().__init__()
        self.num_heard = 3
        self.num_losses = 0
        self.other_words = None
        self.has_lost = False

    async def stream_stage(self, server, call):
        num_heard = 0
        async with aclosing(super().stream_stage(server, call)) as messages:
            async for message in messages:
                if isinstance(message, AnswerDelta):
                    if self.num_losses and num_heard == self.num_heard:
                        self.num_losses -= 1
                        self.has_lost = True
                        raise LostError("a replica of group 'deciders' was lost. Send it again.")
                    num_heard += 1
                    if self.has_lost and self.other_words is not None:
                        message = replace(message, text=self.other_words)
                yield message


@pytest.fixture(scope="module")
def args_of(tmp_path_factory):
    """Args for the scripted model with a template of one's own."""

    def args_with(template):
        model = make_scripted_model(tmp_path_factory.mktemp("scripted") / "scripted-1b")
        (model / "chat_template.jinja").write_text(template)
        engine = {"model_name": str(model), "device": "cpu", "dtype": "float32"}
        engine |= {"kv_cache_bytes": 2**23, "num_threads": 1}
        return AppArgs(
            engine=engine,
            groups=[THINKERS, DECIDERS],
            latent_steps=2,
            max_stage_attempts=MAX_ATTEMPTS,
        )

    return args_with


@pytest.fixture
def transport(monkeypatch):
    transport = Transport()
    monkeypatch.setattr("deployments.runner.stream_stage", transport.stream_stage)
    monkeypatch.setattr("latentmas_core.pipelines.retries.RetryPolicy.delay_after", lambda *_: 0)
    return transport


def engines_of(args):
    return {group.name: Engine(args.engine_of(group)) for group in args.groups}


def http_of(args, engines):
    reasoner = Reasoner(args, make_servers(args, engines), TransferBudget(2**30))
    return client_of(make_app(reasoner, make_access()), ALICE)


@pytest.fixture(scope="module")
def args(args_of):
    return args_of(TEMPLATE)


@pytest.fixture(scope="module")
def engines(args):
    engines = engines_of(args)
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.fixture
async def client(args, engines, transport):
    async with http_of(args, engines) as client:
        yield client
    for engine in engines.values():
        await engine.check_integrity()


async def chat(client, *messages, model=PIPELINE, **fields):
    body = {"model": model, "messages": list(messages or [USER]), "temperature": 0}
    return await client.post("/v1/chat/completions", json=body | fields)


async def chunks_of(client, **fields):
    """The JSON of each message in front of [DONE], with which every stream ends."""
    response = await chat(client, stream=True, **fields)
    assert response.status_code == 200, response.text
    *messages, end, rest = response.text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    return [json.loads(message.removeprefix("data: ")) for message in messages]


def pieces_in(chunks):
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if "choices" in chunk]
    return [delta["content"] for delta in deltas if delta.get("content")]


@pytest.mark.parametrize("model", [PIPELINE, BASE])
@pytest.mark.parametrize("num_heard", range(len(ANSWER)))
async def test_answer_whose_replica_is_lost_goes_on_where_its_reader_is(
    client, transport, model, num_heard
):
    transport.num_heard, transport.num_losses = num_heard, 2
    chunks = await chunks_of(client, model=model)
    assert transport.num_losses == 0
    assert pieces_in(chunks) == list(ANSWER)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_no_token_of_an_answer_whose_replica_is_lost_is_told_twice(client, transport):
    def tokens_in(chunks):
        told = [chunk["choices"][0]["logprobs"] for chunk in chunks]
        return [token for one in told if one is not None for token in one["content"]]

    options = {"logprobs": True, "top_logprobs": 2}
    undisturbed = tokens_in(await chunks_of(client, **options))
    transport.num_losses = 1
    chunks = await chunks_of(client, **options)
    assert transport.has_lost
    assert [token["token"] for token in undisturbed] == list(ANSWER)
    assert tokens_in(chunks) == undisturbed
    assert pieces_in(chunks) == list(ANSWER)


async def test_call_of_a_tool_whose_replica_is_lost_comes_once(client, transport):
    transport.num_losses = 1
    chunks = await chunks_of(client, tools=[TOOL])
    assert transport.has_lost
    assert "".join(pieces_in(chunks)) == "Let me look."
    calls = [chunk["choices"][0]["delta"].get("tool_calls", []) for chunk in chunks]
    assert [call["function"]["name"] for each in calls for call in each] == ["weather"]


@pytest.mark.parametrize("options", [{}, {"logprobs": True}], ids=["text", "logprobs"])
async def test_answer_that_is_lost_for_good_ends_with_the_error_and_says_nothing_twice(
    client, transport, options
):
    transport.num_losses = MAX_ATTEMPTS
    *chunks, last = await chunks_of(client, **options)
    assert pieces_in(chunks) == list(ANSWER[: transport.num_heard])
    assert list(last) == ["error"]
    error = last["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert (error["type"], error["code"]) == ("server_error", "unavailable")
    assert "was lost" in error["message"]
    assert not any(chunk["choices"][0]["finish_reason"] for chunk in chunks)


async def test_answer_that_a_second_replica_words_differently_ends_with_an_error(client, transport):
    transport.num_losses, transport.other_words = 1, "Lyon"
    *chunks, last = await chunks_of(client)
    assert pieces_in(chunks) == list(ANSWER[: transport.num_heard])
    assert last["error"]["code"] == "unavailable"
    assert "chose other words" in last["error"]["message"]


@pytest.fixture(scope="module", params=[REFUSES_SYSTEM, DROPS_SYSTEM], ids=["refuses", "drops"])
def without_system(request, args_of):
    """Args and engines of a model whose template has no place for a system message."""
    args = args_of(request.param + TEMPLATE)
    engines = engines_of(args)
    yield args, engines
    for engine in engines.values():
        engine.close()


@pytest.fixture
async def plain_client(without_system, transport):
    async with http_of(*without_system) as client:
        yield client


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", [PIPELINE, BASE])
@pytest.mark.parametrize("messages", [(SYSTEM, USER), (USER, SYSTEM, USER)], ids=["first", "later"])
async def test_system_message_without_a_place_in_the_template_is_refused_by_name(
    plain_client, model, messages, stream
):
    response = await chat(plain_client, *messages, model=model, stream=stream)
    message = assert_error(response, 400, code="invalid_request", param="messages")
    assert "no place" in message
    response = await chat(plain_client, model=model)
    assert response.json()["choices"][0]["message"]["content"] == SAID


async def test_system_prompt_without_a_place_in_the_template_is_refused_by_name(plain_client):
    response = await ask(plain_client, system_prompt="Be brief.")
    message = assert_error(response, 422, code="invalid_request", param="system_prompt")
    assert "no place" in message
    response = await ask(plain_client, system_prompt="Be brief.", stream=True)
    last = parse_events(response.text)[-1]
    assert last.name == "error"
    assert last.content["error"]["param"] == "system_prompt"
