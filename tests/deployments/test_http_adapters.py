"""The calls that list, load and unload adapters, without Ray and without engines."""

import httpx
import pytest

from deployments.api.adapters import AdapterAdmin
from deployments.api.openai.models import ChatModels
from deployments.args import AdaptersConfig
from deployments.ingress import build_http_app
from latentmas_core.errors import AdapterError, HubError
from tests.deployments.http_calls import assert_error

ADMIN = pytest.mark.parametrize("client", [{"admin": True}], indirect=True)
LOAD = {"lora_name": "mine", "lora_path": "/adapters/mine"}


async def load(client, **fields):
    return await client.post("/v1/load_lora_adapter", json=LOAD | fields)


@ADMIN
async def test_adapter_is_loaded_listed_and_unloaded(client, reasoner):
    response = await load(client, pinned=True)
    assert response.status_code == 200
    assert (response.json()["name"], response.json()["pinned"]) == ("mine", True)
    assert reasoner.adapters.sources["mine"].path == "/adapters/mine"
    listed = (await client.get("/v1/adapters")).json()["data"]
    assert listed == [{"name": "mine", "states": {"thinkers": ["ready"]}}]
    response = await client.post("/v1/unload_lora_adapter", json={"lora_name": "mine"})
    assert response.json() == {"name": "mine", "unloaded": True}
    assert (await client.get("/v1/adapters")).json()["data"] == []


@pytest.mark.parametrize("call", ["load_lora_adapter", "unload_lora_adapter"])
async def test_changing_anything_is_off_unless_the_config_says_so(client, reasoner, call):
    body = LOAD if call.startswith("load") else {"lora_name": "mine"}
    response = await client.post(f"/v1/{call}", json=body)
    message = assert_error(response, 403, code="adapters_admin_off", type_="permission_error")
    assert "adapters.admin" in message
    assert reasoner.adapters.sources == {}


async def test_registry_says_what_fits_the_base_model(client):
    registry = (await client.get("/v1/adapters")).json()["registry"]
    fits = {entry["name"]: entry["compatible"] for entry in registry}
    assert fits["medical_reasoner"]
    assert not fits["math_instruct"]


@ADMIN
async def test_name_without_a_path_is_one_of_the_registry(client, reasoner):
    await client.post("/v1/load_lora_adapter", json={"lora_name": "medical_reasoner"})
    source = reasoner.adapters.sources["medical_reasoner"]
    assert source.path == "iimran/Qwen2.5-3B-R1-MedicalReasoner-lora-adapter"
    await load(client)
    assert reasoner.adapters.operators == {"medical_reasoner"}, "a client's path is guarded"


@pytest.fixture
def registry(tmp_path):
    """A file of the operator's, as it was when the application started."""
    return write_registry(tmp_path / "mine.yaml", "old")


def write_registry(path, name):
    path.write_text(
        f"adapters:\n  - {{name: {name}, path: /adapters/x, base_model: Qwen2.5-3B-Instruct}}\n"
    )
    return path


@pytest.fixture
async def registered(reasoner, registry, request):
    """A client of an application with that registry; the test's parameter is ``admin``."""
    admin = AdapterAdmin(
        AdaptersConfig(registries=[registry], admin=request.param), "Qwen2.5-3B-Instruct"
    )
    transport = httpx.ASGITransport(build_http_app(reasoner, admin, ChatModels((), "any")))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def registered_names(client):
    return {entry["name"] for entry in (await client.get("/v1/adapters")).json()["registry"]}


@pytest.mark.parametrize("registered", [False, True], indirect=True)
async def test_registry_that_changed_is_listed_as_it_is_now(registered, registry):
    assert {"old", "medical_reasoner"} <= await registered_names(registered)
    write_registry(registry, "new")
    names = await registered_names(registered)
    assert "new" in names
    assert "old" not in names


@pytest.mark.parametrize("registered", [True], indirect=True)
async def test_broken_registry_is_for_the_operator_to_know(registered, reasoner, registry, caplog):
    """Loading goes on, by path and by the names that were known; no path reaches a client."""
    registry.write_text("adapters: [")
    assert (await load(registered)).status_code == 200
    assert caplog.messages == []
    response = await registered.post("/v1/load_lora_adapter", json={"lora_name": "old"})
    assert response.status_code == 200
    assert reasoner.adapters.sources.keys() == {"mine", "old"}
    response = await registered.post("/v1/load_lora_adapter", json={"lora_name": "nobody"})
    assert str(registry) not in assert_error(response, 404, code="not_found", param="lora_name")
    assert "old" in await registered_names(registered)
    assert all(str(registry) in message for message in caplog.messages)
    assert len(caplog.messages) == 3


@ADMIN
async def test_entry_for_another_base_is_refused_with_both_names(client, reasoner):
    response = await client.post("/v1/load_lora_adapter", json={"lora_name": "coder_7b"})
    message = assert_error(response, 422, code="invalid_adapter", param="lora_name")
    assert "Qwen2.5-Coder-7B-Instruct" in message
    assert "Qwen2.5-3B-Instruct" in message
    assert reasoner.adapters.sources == {}


@ADMIN
@pytest.mark.parametrize("call", ["load_lora_adapter", "unload_lora_adapter"])
async def test_unknown_name_is_404(client, call):
    response = await client.post(f"/v1/{call}", json={"lora_name": "nobody"})
    assert "nobody" in assert_error(response, 404, code="not_found", param="lora_name")


@ADMIN
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"lora_name": ""}, "lora_name"),
        ({"lora_name": "../up"}, "lora_name"),
        ({"lora_path": ""}, "lora_path"),
        ({"lora_path": None, "revision": "main"}, "revision"),
        ({"pin": True}, "pin"),
    ],
)
async def test_wrong_body_names_the_field(client, reasoner, fields, param):
    response = await load(client, **fields)
    code = "invalid_adapter" if param == "revision" else "invalid_request"
    assert_error(response, 422, code=code, param=param)
    assert reasoner.adapters.sources == {}


@ADMIN
@pytest.mark.parametrize(
    ("error", "status", "code", "type_"),
    [
        (AdapterError("broken", param="path"), 422, "invalid_adapter", "invalid_request_error"),
        (HubError("away", param="path"), 502, "hub_unavailable", "server_error"),
    ],
)
async def test_failure_to_load_is_told(client, reasoner, error, status, code, type_):
    reasoner.adapters.error = error
    message = assert_error(await load(client), status, code=code, param="lora_path", type_=type_)
    assert message == error.message


@ADMIN
async def test_path_that_the_operator_gave_is_told_of_as_the_name(client, reasoner):
    reasoner.adapters.error = AdapterError("broken", param="path")
    response = await client.post("/v1/load_lora_adapter", json={"lora_name": "medical_reasoner"})
    assert_error(response, 422, code="invalid_adapter", param="lora_name")
