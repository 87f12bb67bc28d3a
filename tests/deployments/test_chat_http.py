"""OpenAI's calls over a fake reasoner: what reaches it, what comes back, what is refused."""

import json

import pytest

from latentmas_core.errors import ContextLengthError, EngineError
from latentmas_core.events import AgentThought
from latentmas_core.request import Mode, Trace
from tests.deployments.fake_reasoner import ANSWER, EVENTS, INFO, LENS_STEP
from tests.deployments.http_calls import assert_error

USER = {"role": "user", "content": "Why?"}
BASE = "Qwen/Qwen2.5-3B-Instruct"
PIPELINE = "latentmas/hierarchical"
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"a": 1}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "rain", "tool_call_id": "c1"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


async def chat(client, *messages, **fields):
    body = {"model": PIPELINE, "messages": list(messages or [USER])} | fields
    # httpx itself would refuse to send NaN and lone surrogates.
    return await client.post(
        "/v1/chat/completions",
        content=json.dumps(body),
        headers={"content-type": "application/json"},
    )


async def request_of(client, reasoner, *messages, **fields):
    response = await chat(client, *messages, **fields)
    assert response.status_code == 200, response.text
    return reasoner.requests[-1]


def chunks_of(response):
    *messages, end, rest = response.text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    return [json.loads(message.removeprefix("data: ")) for message in messages]


async def test_answer_has_openais_shape_and_tells_how_it_came_about(client):
    response = await chat(client)
    body = response.json()
    assert set(body) == {"id", "object", "created", "model", "choices", "usage", "latentmas"}
    assert (body["object"], body["model"]) == ("chat.completion", PIPELINE)
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == ANSWER
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert body["latentmas"]["pipeline"] == "hierarchical"
    assert [agent["name"] for agent in body["latentmas"]["agents"]] == ["judger"]
    assert body["latentmas"]["transfer"] == {"stages": 3, "hops": 2, "bytes": 4096}


async def test_fields_reach_the_reasoner(client, reasoner):
    request = await request_of(
        client,
        reasoner,
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": " Why? "},
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.4,
        seed=3,
        stop="\n",
        logprobs=True,
        top_logprobs=2,
        latentmas={"mode": "text", "latent_steps": 3, "handoff": "embeddings", "timeout_s": 9},
    )
    assert request.model_dump(exclude_defaults=True) == {
        "question": " Why? ",
        "system_prompt": "Be brief.\n\nBe kind.",
        "mode": "text",
        "latent_steps": 3,
        "handoff": "embeddings",
        "timeout_s": 9,
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.4,
        "seed": 3,
        "stop": ("\n",),
        "logprobs": 2,
    }


async def test_earlier_turns_stand_before_the_question_and_results_behind_it(client, reasoner):
    request = await request_of(
        client,
        reasoner,
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two", "refusal": None, "annotations": []},
        {"role": "system", "content": "Three"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Fo"}, {"type": "text", "text": "ur"}],
        },
        CALLING,
        RESULT,
    )
    assert [(m.role, m.content) for m in request.history] == [
        ("user", "One"),
        ("assistant", "Two"),
        ("system", "Three"),
    ]
    assert request.question == "Four"
    assert [m.role for m in request.tool_messages] == ["assistant", "tool"]
    (call,) = request.tool_messages[0].tool_calls
    assert (call.name, call.arguments, call.call_id) == ("weather", {"a": 1}, "c1")


async def test_tools_reach_the_reasoner_unless_none_is_to_be_called(client, reasoner):
    request = await request_of(client, reasoner, tools=[TOOL], tool_choice="auto")
    assert [tool.name for tool in request.tools] == ["weather"]
    request = await request_of(client, reasoner, tools=[TOOL], tool_choice="none")
    assert request.tools == ()


@pytest.mark.parametrize("model", [BASE, "Qwen2.5-3B-Instruct", "latentmas/chat"])
async def test_base_model_is_a_plain_chat(client, reasoner, model):
    request = await request_of(client, reasoner, model=model)
    assert (request.pipeline, request.mode, request.adapters) == ("chat", Mode.SINGLE, {})


async def test_name_of_an_adapter_is_a_plain_chat_with_it(client, reasoner):
    reasoner.adapters.sources["mine"] = None
    request = await request_of(client, reasoner, model="mine")
    assert (request.pipeline, request.mode) == ("chat", Mode.SINGLE)
    assert request.adapters == {"assistant": "mine"}


@pytest.mark.parametrize(
    "model", ["gpt-4o", "latentmas/diagonal", "hierarchical", "latentmas/", "mine", "../x", "a b"]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_unknown_model_is_404_and_names_what_there_is(client, model, stream):
    response = await chat(client, model=model, stream=stream)
    message = assert_error(response, 404, code="model_not_found", param="model")
    assert repr(model) in message
    assert PIPELINE in message


async def test_models_are_pipelines_the_base_and_adapters(client, reasoner):
    reasoner.adapters.sources[INFO.name] = None
    body = (await client.get("/v1/models")).json()
    assert body["object"] == "list"
    by_id = {model["id"]: model for model in body["data"]}
    assert list(by_id) == [PIPELINE, "latentmas/parallel", "latentmas/chat", BASE, INFO.name]
    assert (by_id[INFO.name]["parent"], by_id[INFO.name]["root"]) == (BASE, INFO.name)
    assert (by_id[BASE]["parent"], by_id[BASE]["root"]) == (None, BASE)
    for name, model in by_id.items():
        assert (await client.get(f"/v1/models/{name}")).json() == model


async def test_unknown_model_is_not_found_by_its_name_either(client):
    response = await client.get("/v1/models/latentmas/diagonal")
    assert_error(response, 404, code="model_not_found", param="model")


async def test_stream_brings_the_answer_in_chunks(client):
    response = await chat(client, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    first, *deltas, last = chunks_of(response)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in deltas) == ANSWER
    assert len(deltas) == 2
    assert last["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert last["latentmas"]["pipeline"] == "hierarchical"
    assert {chunk["id"] for chunk in (first, *deltas, last)} == {first["id"]}
    assert not any("usage" in chunk for chunk in (first, *deltas, last))


async def test_stream_tells_what_thoughts_were_close_to(client, reasoner):
    thoughts = [AgentThought("planner", 1, LENS_STEP), AgentThought("planner", 1)]
    reasoner.events = (*EVENTS[:2], *thoughts, *EVENTS[2:])
    response = await chat(client, stream=True, latentmas={"trace": "lens"})
    assert reasoner.requests[-1].trace is Trace.LENS
    _, thought, *others = chunks_of(response)
    assert thought["latentmas"] == {
        "event": "agent.thought",
        "agent": "planner",
        "latent_steps": 1,
        "lens": LENS_STEP.model_dump(mode="json"),
    }
    assert thought["choices"][0]["delta"] == {}
    assert thought["choices"][0]["finish_reason"] is None
    assert [c["latentmas"]["pipeline"] for c in others if "latentmas" in c] == ["hierarchical"]


async def test_stream_ends_with_usage_where_it_is_asked_for(client):
    *others, last = chunks_of(
        await chat(client, stream=True, stream_options={"include_usage": True})
    )
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert all(chunk["usage"] is None for chunk in others)


@pytest.mark.parametrize("fails_at", [0, 1, 2])
async def test_error_before_anything_came_has_its_status_in_a_stream_too(
    client, reasoner, fails_at
):
    reasoner.error, reasoner.fails_at = ContextLengthError("too long.", param="question"), fails_at
    response = await chat(client, stream=True)
    assert_error(response, 400, code="context_length_exceeded", param="messages")
    assert reasoner.is_closed


async def test_error_later_is_told_inside_the_stream(client, reasoner):
    reasoner.error, reasoner.fails_at = EngineError("a replica was lost."), 3
    response = await chat(client, stream=True)
    assert response.status_code == 200
    *_, last = chunks_of(response)
    assert last["error"]["code"] == "unavailable"
    assert reasoner.is_closed


async def test_internal_error_leaks_nothing(client, reasoner, caplog):
    for fails_at, stream in [(0, False), (3, True)]:
        reasoner.error, reasoner.fails_at = RuntimeError("/secret/path"), fails_at
        response = await chat(client, stream=stream)
        assert "secret" not in response.text
        assert "internal_error" in response.text
        assert "/secret/path" in caplog.text


async def test_overload_is_503_and_says_when_to_come_back(client, reasoner):
    reasoner.error = EngineError("overloaded.")
    response = await chat(client)
    assert_error(response, 503, code="unavailable", type_="server_error")
    assert "retry-after" in response.headers


HARMLESS = {
    "n": 1,
    "store": False,
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "service_tier": "auto",
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "user": "me",
    "metadata": {"a": "b"},
    "safety_identifier": "me",
    "prompt_cache_key": "x",
}


@pytest.mark.parametrize("field", HARMLESS)
async def test_field_with_the_one_value_that_can_be_kept_is_taken(client, field):
    assert (await chat(client, **{field: HARMLESS[field]})).status_code == 200
    assert (await chat(client, **{field: None})).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"store": True}, "store"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": -1}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"functions": []}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"audio": {}}, "audio"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"prediction": {}}, "prediction"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.type"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "strict": True}}]},
            "tools.0.function.strict",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": [1]}}]},
            "tools.0.function.parameters",
        ),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "a", "parameters": {"a": "\ud800"}}}
                ]
            },
            "tools.0.function.parameters",
        ),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": "x"}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop.0"),
        ({"stop": 5}, "stop"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"nonsense": 1}}, "stream_options.nonsense"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "Why?"}, "messages"),
        ({"nonsense": 1}, "nonsense"),
        ({"latentmas": {"nonsense": 1}}, "latentmas.nonsense"),
        ({"latentmas": {"mode": "telepathy"}}, "latentmas.mode"),
        ({"latentmas": {"latent_steps": -1}}, "latentmas.latent_steps"),
        ({"latentmas": {"question": "Why?"}}, "latentmas.question"),
        ({"model": BASE, "latentmas": {"latent_steps": 3}}, "latentmas.latent_steps"),
        ({"model": BASE, "latentmas": {"adapters": {}}}, "latentmas.adapters"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
async def test_what_cannot_be_kept_is_refused_by_name(client, reasoner, fields, param):
    response = await chat(client, **fields)
    message = assert_error(response, 400, code="invalid_request", param=param)
    assert param.rsplit(".", 1)[-1] in message or param in message
    assert not reasoner.requests


def user(content):
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "system", "content": "Be brief."}], "messages"),
        ([user("")], "messages.0.content"),
        ([user("  \n")], "messages.0.content"),
        ([user(None)], "messages.0.content"),
        ([user(7)], "messages.0.content"),
        ([user("\ud800 alone")], "messages.0.content"),
        ([user([{"type": "image_url", "image_url": {"url": "x"}}])], "messages.0.content"),
        ([user([{"type": "text", "text": 7}])], "messages.0.content"),
        ([user([{"type": "text", "text": "a", "b": 1}])], "messages.0.content"),
        ([user(["a"])], "messages.0.content"),
        ([{"role": "function", "content": "a"}], "messages.0.role"),
        ([{"content": "a"}], "messages.0.role"),
        ([USER | {"name": "me"}], "messages.0.name"),
        ([USER | {"tool_call_id": "c1"}], "messages.0.tool_call_id"),
        ([USER | {"tool_calls": [CALL]}], "messages.0.tool_calls"),
        ([USER, {"role": "assistant", "content": "Because"}], "messages.1.role"),
        ([USER, {"role": "assistant"}, USER], "messages.1.content"),
        ([USER, CALLING], "messages.1.role"),
        ([USER, RESULT], "messages.1.tool_call_id"),
        ([USER, CALLING, RESULT | {"tool_call_id": "c2"}], "messages.2.tool_call_id"),
        ([USER, CALLING, {"role": "tool", "content": "a"}], "messages.2.tool_call_id"),
        ([USER, CALLING, {"role": "system", "content": "a"}, RESULT], "messages.2.role"),
        (
            [
                USER,
                CALLING | {"tool_calls": [CALL | {"function": {"name": "a", "arguments": "["}}]},
                RESULT,
            ],
            "messages.1.tool_calls.0.function.arguments",
        ),
        (
            [
                USER,
                CALLING | {"tool_calls": [CALL | {"function": {"name": "a", "arguments": "[]"}}]},
                RESULT,
            ],
            "messages.1.tool_calls.0.function.arguments",
        ),
    ],
    ids=str,
)
async def test_conversation_that_cannot_be_answered_names_the_message(
    client, reasoner, messages, param
):
    response = await chat(client, *messages)
    message = assert_error(response, 400, code="invalid_request", param=param)
    assert param in message
    assert not reasoner.requests


@pytest.mark.parametrize("content", ["", "{", "null", "[]", b"\xff\xfe", b"[" * 100_000])
async def test_body_that_is_no_json_object_is_a_clients_error(client, content):
    headers = {"content-type": "application/json"}
    response = await client.post("/v1/chat/completions", content=content, headers=headers)
    assert_error(response, 400, code=response.json()["error"]["code"])
