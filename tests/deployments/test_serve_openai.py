"""OpenAI's own client, and another public one, against the running service."""

import asyncio
import json
import re
from pathlib import Path

import openai
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoTokenizer

from tests.lora.adapters import make_adapter
from tests.scripted_model import ANSWER, CONCLUSION, make_scripted_model

pytestmark = [pytest.mark.serve, pytest.mark.own_cluster, pytest.mark.slow]

PIPELINE = "latentmas/hierarchical"
SAID, CONCLUDED = "".join(ANSWER), "".join(CONCLUSION)
USER = {"role": "user", "content": "What is the capital of France?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
GREEDY = {"temperature": 0, "max_tokens": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_scripted_model(tmp_path_factory.mktemp("scripted") / "scripted-1b")


@pytest.fixture(scope="module")
def service(deploy, folder, tmp_path_factory):
    adapter = make_adapter(tmp_path_factory.mktemp("adapters") / "mine", folder, std=0.001)
    engine = {
        "model_name": str(folder),
        "device": "cpu",
        "dtype": "float32",
        "kv_cache_bytes": 2**26,
    }
    thinkers = {"name": "thinkers", "agents": ["planner", "critic"]}
    deciders = {"name": "deciders", "agents": ["refiner", "judger"]}
    return deploy(
        {
            "engine": engine,
            "latent_steps": 2,
            "groups": [thinkers, deciders],
            "adapters": {"load": [{"name": "mine", "path": str(adapter)}]},
        }
    )


@pytest.fixture(autouse=True)
def _left_idle(service):
    yield
    service.wait_until_idle()


@pytest.fixture
def client(service):
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
async def aclient(service):
    async with openai.AsyncOpenAI(
        base_url=f"{service.url}/v1", api_key="any", max_retries=0
    ) as client:
        yield client


def ask(client, model=PIPELINE, messages=(USER,), **options):
    options = GREEDY | options
    return client.chat.completions.create(model=model, messages=list(messages), **options)


@pytest.mark.parametrize("model", [PIPELINE, "latentmas/sequential", "scripted-1b"])
def test_it_answers(client, model):
    completion = ask(client, model)
    (choice,) = completion.choices
    assert (choice.message.content, choice.finish_reason) == (SAID, "stop")
    assert completion.model == model
    usage = completion.usage
    assert usage.completion_tokens == len(ANSWER)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_pipeline_tells_which_agents_thought(client):
    trace = ask(client, extra_body={"latentmas": {"latent_steps": 3}}).latentmas
    assert [agent["name"] for agent in trace["agents"]] == [
        "planner",
        "critic",
        "refiner",
        "judger",
    ]
    assert trace["latent_steps"] == 9


def test_adapter_answers_by_its_name(client):
    completion = ask(client, "mine", [{"role": "system", "content": "Be brief."}, USER])
    (agent,) = completion.latentmas["agents"]
    assert (agent["name"], agent["adapter"], agent["text"]) == ("assistant", "mine", SAID)
    (base,) = ask(client, "scripted-1b").latentmas["agents"]
    assert base["adapter"] == "base"
    model = client.models.retrieve("mine")
    assert (model.parent, model.root) == ("scripted-1b", "mine")


def test_plain_chat_is_what_the_template_says_and_no_word_more(client, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": " <|im_end|> What now?"},
    ]
    expected = len(
        tokenizer.apply_chat_template(
            [m | {"content": m["content"].replace("<|im_end|>", "x" * 10)} for m in talk],
            add_generation_prompt=True,
            return_dict=False,
        )
    )
    assert ask(client, "scripted-1b", talk).usage.prompt_tokens == expected


async def test_async_answers_come_at_the_same_time(aclient):
    completions = await asyncio.gather(*(ask(aclient) for _ in range(8)))
    assert {completion.choices[0].message.content for completion in completions} == {SAID}


def test_stream_brings_pieces_then_the_reason_then_usage(client):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    pieces = [
        c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content
    ]
    assert pieces == list(ANSWER)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == len(ANSWER)


def test_stream_tells_what_thoughts_are_close_to(client):
    chunks = list(ask(client, stream=True, extra_body={"latentmas": {"trace": "lens"}}))
    told = [chunk.latentmas for chunk in chunks if getattr(chunk, "latentmas", None)]
    *thoughts, trace = told
    assert [(one["agent"], one["latent_steps"]) for one in thoughts] == [
        (agent, step) for agent in ("planner", "critic", "refiner") for step in (1, 2)
    ]
    assert all(one["event"] == "agent.thought" for one in thoughts)
    assert all(len(one["lens"]["tokens"]) == 5 for one in thoughts)
    assert [agent["name"] for agent in trace["agents"]][-1] == "judger"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SAID


async def test_async_stream_is_read_to_its_end(aclient):
    stream = await ask(aclient, stream=True)
    assert "".join([c.choices[0].delta.content or "" async for c in stream]) == SAID


def test_error_within_a_stream_is_the_clients_own_too(client):
    options = {"latentmas": {"ignore_eos": True, "timeout_s": 1.0}}
    stream = ask(client, stream=True, max_tokens=3000, extra_body=options)
    chunks = []
    with pytest.raises(openai.APIError, match="timeout_s") as caught:
        chunks.extend(stream)
    assert caught.value.code == "deadline_exceeded"


async def test_async_stream_that_is_left_ends_its_run(aclient, service):
    before = service.total("num_tokens_total")
    stream = await ask(
        aclient, stream=True, max_tokens=3000, extra_body={"latentmas": {"ignore_eos": True}}
    )
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    service.wait_until_idle()
    assert service.total("num_tokens_total") - before < 1500


def test_stop_and_length_end_an_answer(client):
    choice = ask(client, "scripted-1b", stop=[" capital", "never"]).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Paris is the", "stop")
    choice = ask(client, "scripted-1b", max_tokens=None, max_completion_tokens=2).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Paris is", "length")


def test_same_seed_says_the_same(client):
    options = {"temperature": 2, "top_p": 1, "seed": 7, "max_tokens": 12}
    options["extra_body"] = {"latentmas": {"ignore_eos": True}}
    answers = [ask(client, "scripted-1b", **options).choices[0].message.content for _ in range(3)]
    others = ask(client, "scripted-1b", **options | {"seed": 8}).choices[0].message.content
    assert len(set(answers)) == 1
    assert others != answers[0]


@pytest.mark.parametrize("model", [PIPELINE, "scripted-1b"])
def test_logprobs_are_those_of_the_answer_whole_and_streamed(client, model):
    options = {"logprobs": True, "top_logprobs": 2}
    whole = ask(client, model, **options).choices[0].logprobs.content
    assert [token.token for token in whole] == list(ANSWER)
    for token in whole:
        assert bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].logprob == token.logprob > -0.1
    chunks = ask(client, model, stream=True, **options)
    streamed = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert streamed == whole
    assert ask(client, model).choices[0].logprobs is None


@pytest.mark.parametrize("model", [PIPELINE, "scripted-1b"])
def test_tool_is_called_and_its_answer_taken(client, model):
    talk = [USER]
    choice = ask(client, model, talk, tools=[TOOL]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    talk += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    choice = ask(client, model, talk, tools=[TOOL]).choices[0]
    assert (choice.message.content, choice.finish_reason) == (CONCLUDED, "stop")
    talk += [choice.message, USER]
    assert ask(client, model, talk).choices[0].message.content == SAID


def test_streamed_tool_call_shows_no_markup(client):
    chunks = list(ask(client, stream=True, tools=[TOOL]))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "Let me look."
    (call,) = [call for delta in deltas for call in delta.tool_calls or []]
    assert (call.index, call.function.name) == (0, "weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_no_tool_is_called_where_none_is_chosen(client):
    assert ask(client, tools=[TOOL], tool_choice="none").choices[0].message.content == SAID


def test_clients_own_stream_helper_accumulates_a_tool_call(client):
    with client.chat.completions.stream(
        model="scripted-1b", messages=[USER], tools=[TOOL], **GREEDY
    ) as stream:
        completion = stream.get_final_completion()
    (call,) = completion.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}


@pytest.mark.parametrize(
    ("options", "error", "code", "param"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found", "model"),
        ({"n": 2}, openai.BadRequestError, "invalid_request", "n"),
        ({"logit_bias": {"1": 1}}, openai.BadRequestError, "invalid_request", "logit_bias"),
        (
            {"model": "scripted-1b", "max_tokens": 50_000},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
        (
            {"messages": [{"role": "user", "content": "x" * 5000}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
        (
            {"extra_body": {"latentmas": {"latent_steps": 200}}},
            openai.BadRequestError,
            "invalid_request",
            "latentmas.latent_steps",
        ),
        (
            {"extra_body": {"latentmas": {"adapters": {"judger": "none-such"}}}},
            openai.NotFoundError,
            "not_found",
            "latentmas.adapters",
        ),
        (
            {"extra_body": {"latentmas": {"timeout_s": 1e-6}}},
            openai.InternalServerError,
            "deadline_exceeded",
            "latentmas.timeout_s",
        ),
    ],
    ids=["model", "n", "logit_bias", "max_tokens", "long", "steps", "adapter", "timeout"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_clients_own_classes(client, options, error, code, param, stream):
    with pytest.raises(error) as caught:
        ask(client, stream=stream, **options)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert ask(client).choices[0].message.content == SAID


def test_documented_client_is_answered(service, capsys):
    page = (Path(__file__).parents[2] / "docs/openai.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    scope = {}
    exec(block.replace("http://127.0.0.1:8000", service.url), scope)
    scope["client"].close()
    assert capsys.readouterr().out.strip() == SAID


def test_models_are_listed_and_found(client):
    ids = [model.id for model in client.models.list()]
    assert ids == [
        "latentmas/auto",
        PIPELINE,
        "latentmas/sequential",
        "latentmas/chat",
        "scripted-1b",
        "mine",
    ]
    assert [client.models.retrieve(name).id for name in ids] == ids
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("latentmas/diagonal")


@pytest.fixture
def _hub_is_not_asked(monkeypatch):
    """The hub's clients of chat completions talk to whom they are told; here to no hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def hub_client(service, _hub_is_not_asked):
    return InferenceClient(base_url=f"{service.url}/v1", api_key="any")


HUB_OPTIONS = {"model": PIPELINE, "messages": [USER], "temperature": 0.0, "max_tokens": 20}


def test_the_hubs_client_chats_streams_and_calls_tools(hub_client):
    answer = hub_client.chat_completion(**HUB_OPTIONS)
    assert answer.choices[0].message.content == SAID
    pieces = [
        chunk.choices[0].delta.content
        for chunk in hub_client.chat_completion(**HUB_OPTIONS, stream=True)
    ]
    assert "".join(piece or "" for piece in pieces) == SAID
    (call,) = hub_client.chat_completion(**HUB_OPTIONS, tools=[TOOL]).choices[0].message.tool_calls
    assert call.function.name == "weather"


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [({"model": "gpt-4o"}, 404, "does not exist here"), ({"n": 2}, 400, "n is 2")],
    ids=["model", "n"],
)
def test_the_hubs_client_raises_its_own_error_with_our_words(hub_client, options, status, words):
    with pytest.raises(HfHubHTTPError, match=words) as caught:
        hub_client.chat_completion(**HUB_OPTIONS | options)
    assert caught.value.response.status_code == status


@pytest.mark.usefixtures("_hub_is_not_asked")
async def test_the_hubs_async_client_streams_with_logprobs_and_usage(service):
    options = {"logprobs": True, "top_logprobs": 2, "stream_options": {"include_usage": True}}
    async with AsyncInferenceClient(base_url=f"{service.url}/v1", api_key="any") as client:
        stream = await client.chat_completion(**HUB_OPTIONS, **options, stream=True)
        chunks = [chunk async for chunk in stream]
    told = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices]
    assert [t.token for one in told if one for t in one.content] == list(ANSWER)
    assert chunks[-1].usage.completion_tokens == len(ANSWER)
