"""What /openapi.json says of the calls: each with all that it may answer."""

from deployments.api.adapters import AdapterAdmin
from deployments.api.openai.models import ChatModels
from deployments.api.openapi import ServiceLimits
from deployments.args import AdaptersConfig
from deployments.ingress import build_http_app
from tests.deployments.fake_reasoner import OFFERED
from tests.deployments.keys import client_of


async def test_docs_describe_the_call(client):
    schema = (await client.get("/openapi.json")).json()
    assert set(schema["paths"]) == {
        "/v1/reason",
        "/v1/batch",
        "/runsync",
        "/v1/pipelines",
        "/v1/agents",
        "/v1/stats",
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/adapters",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/healthz",
        "/readyz",
    }
    assert (await client.get("/docs")).status_code == 200


async def test_every_call_is_described_with_the_one_shape_of_errors(client):
    schema = (await client.get("/openapi.json")).json()
    one_shape = {"$ref": "#/components/schemas/ErrorBody"}
    for status, answer in schema["components"]["responses"].items():
        assert answer["content"]["application/json"]["schema"] == one_shape, status
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    answer = schema["paths"]["/v1/reason"]["post"]["responses"]["200"]["content"]
    assert set(answer) == {"application/json", "text/event-stream"}


async def test_every_answer_of_a_call_is_described(client):
    schema = (await client.get("/openapi.json")).json()
    common = {"200", "404", "405", "408", "429", "500", "503"}
    guarded = common | {"401", "403"}
    for path, calls in schema["paths"].items():
        for method, call in calls.items():
            expected = guarded if path.startswith(("/v1/", "/runsync")) else common
            if method == "post":
                refused = "400" if "chat" in path else "422"
                expected = expected | {"413", "415", refused}
            answered = set(call["responses"]) - {"409", "502", "504"}
            assert answered == expected, f"{method} {path}"


async def test_limits_of_the_service_are_told(reasoner):
    admin = AdapterAdmin(AdaptersConfig(), "base")
    limits = ServiceLimits(max_tokens=7, max_latent_steps=5)
    app = build_http_app(reasoner, admin, ChatModels(OFFERED, "base"), limits=limits)
    async with client_of(app) as client:
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    for model, field, limit in [
        ("ReasonBody", "max_tokens", 7),
        ("ReasonBody", "latent_steps", 5),
        ("AskRequest", "max_tokens", 7),
        ("LatentOptions", "latent_steps", 5),
        ("JobInput", "max_tokens", 7),
        ("ChatBody", "max_tokens", 7),
        ("ChatBody", "max_completion_tokens", 7),
    ]:
        integer, _ = schemas[model]["properties"][field]["anyOf"]
        assert integer["maximum"] == limit, f"{model}.{field}"


async def test_documented_examples_are_taken(client, reasoner):
    reasoner.adapters.sources["mine"] = None
    paths = (await client.get("/openapi.json")).json()["paths"]
    examples = [
        (path, example["value"])
        for path, calls in paths.items()
        if "post" in calls
        for example in calls["post"]["requestBody"]["content"]["application/json"][
            "examples"
        ].values()
    ]
    posts = {path for path, calls in paths.items() if "post" in calls}
    assert {path for path, _ in examples} == posts
    for path, body in examples:
        response = await client.post(path, json=body)
        # Adapters may not be changed over HTTP here.
        assert response.status_code == (403 if "lora" in path else 200), response.text


async def test_bodies_and_answers_of_chats_are_described(client):
    schema = (await client.get("/openapi.json")).json()
    call = schema["paths"]["/v1/chat/completions"]["post"]
    body = schema["components"]["schemas"]["ChatBody"]["properties"]
    assert {"model", "messages", "stream", "tools", "latentmas"} <= set(body)
    assert {"200", "400", "404", "503"} <= set(call["responses"])
    assert set(call["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    options = schema["components"]["schemas"]["LatentOptions"]["properties"]
    assert {"mode", "latent_steps", "handoff", "adapters", "top_k"} <= set(options)
    assert "question" not in options
