"""The calls about conversations: each caller's own, the errors, and what /openapi.json says."""

import httpx
import pytest

from deployments.api.errors import RETRY_AFTER_S
from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.context.conversations.conversations import Conversations
from latentmas_core.errors import ConflictError
from tests.context.conversations.answers import take_turn
from tests.deployments.http_calls import ask, assert_error
from tests.deployments.keys import ADMIN, ALICE, BOB, LOADER, client_of, make_access, make_app

ALL = "/v1/conversations"
MINE = f"{ALL}/mine"
CALLS = [("GET", MINE), ("PATCH", MINE), ("DELETE", MINE), ("GET", f"{MINE}/export")]


@pytest.fixture
async def conversations(tmp_path):
    opened = Conversations(ConversationsConfig(url=f"sqlite:///{tmp_path}/c.db"))
    yield opened
    await opened.close()


@pytest.fixture
def app(reasoner, conversations):
    """Alice's tenant is alice-inc."""
    return make_app(reasoner, make_access(), conversations=conversations)


@pytest.fixture
async def alice(app):
    async with client_of(app, ALICE) as client:
        yield client


@pytest.fixture
async def bob(app):
    async with client_of(app, BOB) as client:
        yield client


async def call(client, method, path):
    body = {"json": {"title": "New"}} if method == "PATCH" else {}
    return await client.request(method, path, **body)


async def test_conversations_are_listed_page_by_page(alice, conversations):
    for name in "abc":
        await take_turn(conversations, "alice-inc", name, f"about {name}")
    first = (await alice.get(ALL, params={"limit": 2})).json()
    assert len(first["data"]) == 2
    last = (await alice.get(ALL, params={"limit": 2, "after": first["next"]})).json()
    assert last["next"] is None
    titles = {one["title"] for one in (*first["data"], *last["data"])}
    assert titles == {"about a", "about b", "about c"}


async def test_conversation_is_shown_with_its_last_turns(alice, conversations):
    for i in range(3):
        await take_turn(conversations, "alice-inc", "mine", f"q{i}", f"a{i}")
    shown = (await alice.get(MINE, params={"limit": 2})).json()
    assert [(turn["question"], turn["answer"]) for turn in shown["turns"]] == [
        ("q1", "a1"),
        ("q2", "a2"),
    ]
    assert (shown["first"], shown["conversation"]["num_turns"]) == (1, 3)
    before = (await alice.get(MINE, params={"before": shown["first"]})).json()
    assert [turn["question"] for turn in before["turns"]] == ["q0"]


async def test_conversation_is_renamed_exported_and_deleted(alice, conversations):
    await take_turn(conversations, "alice-inc", "mine", "q0")
    renamed = await alice.patch(MINE, json={"title": " New "})
    assert (renamed.status_code, renamed.json()["title"]) == (200, "New")
    exported = await alice.get(f"{MINE}/export")
    assert exported.headers["content-disposition"] == 'attachment; filename="mine.json"'
    assert exported.json()["conversation"] == renamed.json()
    assert [turn["question"] for turn in exported.json()["turns"]] == ["q0"]
    deleted = await alice.delete(MINE)
    assert (deleted.status_code, deleted.json()) == (200, {"id": "mine", "deleted": True})
    assert (await alice.get(ALL)).json() == {"data": [], "next": None}


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_conversation_of_another_tenant_is_as_one_that_does_not_exist(
    alice, bob, conversations, method, path
):
    await take_turn(conversations, "alice-inc", "mine", "secret")
    theirs = await call(bob, method, path)
    nobodys = await call(bob, method, path.replace("mine", "none"))
    for response in (theirs, nobodys):
        assert_error(response, 404, code="not_found", param="conversation_id")
    assert theirs.text.replace("mine", "none") == nobodys.text
    assert (await bob.get(ALL)).json()["data"] == []
    assert (await alice.get(MINE)).json()["turns"][0]["question"] == "secret"


@pytest.mark.parametrize("name", ["...", "a%20b", "a%5Cb", "%C3%A9", "a" * 129, "a%00"])
@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_wrong_id_is_refused(alice, name, method, path):
    response = await call(alice, method, path.replace("mine", name))
    message = assert_error(response, 422, code="invalid_request", param="conversation_id")
    assert "conversation_id is" in message


@pytest.mark.parametrize("name", ["a%2Fb", "..%2F..%2Fetc", "a/b/c"])
async def test_path_in_place_of_an_id_is_no_call(alice, name):
    assert_error(await alice.get(f"{ALL}/{name}"), 404, code="not_found")


@pytest.mark.parametrize(
    ("path", "params", "field"),
    [
        (ALL, {"limit": 0}, "limit"),
        (ALL, {"limit": 101}, "limit"),
        (ALL, {"limit": "x"}, "limit"),
        (ALL, {"after": "x"}, "after"),
        (MINE, {"limit": 201}, "limit"),
        (MINE, {"before": -1}, "before"),
        (MINE, {"before": 2**31}, "before"),
    ],
)
async def test_wrong_page_is_refused_by_its_field(alice, conversations, path, params, field):
    await conversations.store.create("alice-inc", "mine")
    response = await alice.get(path, params=params)
    assert_error(response, 422, code="invalid_request", param=field)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "title"),
        ({"title": ""}, "title"),
        ({"title": "  "}, "title"),
        ({"title": 5}, "title"),
        ({"title": "a\nb"}, "title"),
        ({"title": "x" * 201}, "title"),
        ({"title": "a", "id": "b"}, "id"),
    ],
)
async def test_wrong_title_is_refused_and_changes_nothing(alice, conversations, body, field):
    made = await conversations.store.create("alice-inc", "mine", title="Old")
    response = await alice.patch(MINE, json=body)
    assert_error(response, 422, code="invalid_request", param=field)
    assert (await conversations.store.show("alice-inc", "mine")).conversation == made


@pytest.mark.parametrize(("method", "path"), [*CALLS, ("GET", ALL)])
async def test_key_is_needed(app, method, path):
    async with client_of(app) as nobody:
        response = await call(nobody, method, path)
    assert_error(response, 401, code="invalid_api_key")


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_changing_needs_the_right_to_ask(app, method):
    async with client_of(app, LOADER) as loader:
        response = await call(loader, method, MINE)
    assert_error(response, 403, code="insufficient_permissions", type_="permission_error")


async def test_right_to_administer_adapters_does_not_reach_other_tenants(app, conversations):
    await take_turn(conversations, "alice-inc", "mine")
    async with client_of(app, ADMIN) as admin:
        assert (await admin.get(MINE)).status_code == 404


@pytest.mark.parametrize(("method", "path"), [*CALLS, ("GET", ALL)])
async def test_database_that_is_down_is_503_and_well_again_later(
    alice, conversations, tmp_path, method, path
):
    await take_turn(conversations, "alice-inc", "mine")
    (tmp_path / "c.db").rename(tmp_path / "away")
    await conversations.close()
    # What stands there now is no database.
    (tmp_path / "c.db").mkdir()
    reopened = Conversations(ConversationsConfig(url=f"sqlite:///{tmp_path}/c.db"))
    conversations.store._database = reopened.store._database
    response = await call(alice, method, path)
    message = assert_error(response, 503, code="store_unavailable", type_="server_error")
    assert str(tmp_path) not in message
    assert response.headers["retry-after"] == str(RETRY_AFTER_S)
    (tmp_path / "c.db").rmdir()
    (tmp_path / "away").rename(tmp_path / "c.db")
    assert (await call(alice, method, path)).status_code == 200


async def test_busy_conversation_is_409(client, reasoner):
    reasoner.error = ConflictError("conversation 'mine' is busy.", param="conversation_id")
    assert_error(await ask(client), 409, code="conflict", param="conversation_id")


async def test_without_conversations_in_the_config_there_are_no_such_calls(client):
    assert_error(await client.get(ALL), 404, code="not_found")


async def test_every_answer_of_these_calls_is_described(app):
    async with client_of(app, ALICE) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    common = {"200", "401", "403", "404", "405", "408", "422", "429", "500", "503"}
    with_body = common | {"413", "415"}
    found = {
        (method, path): set(described["responses"])
        for path, calls in paths.items()
        if path.startswith(ALL)
        for method, described in calls.items()
    }
    one = f"{ALL}/{{conversation_id}}"
    assert found == {
        ("get", ALL): common,
        ("get", one): common,
        ("patch", one): with_body,
        ("delete", one): with_body,
        ("get", f"{one}/export"): common,
    }


async def test_browser_may_rename_where_its_page_may_call(reasoner, conversations):
    access = make_access(cors_origins=("https://page.example",))
    app = make_app(reasoner, access, conversations=conversations)
    headers = {
        "origin": "https://page.example",
        "access-control-request-method": "PATCH",
        "access-control-request-headers": "authorization",
    }
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as browser:
        assert (await browser.options(MINE, headers=headers)).status_code == 200


async def test_path_says_all_methods_that_it_has(alice):
    response = await alice.post(MINE)
    assert_error(response, 405, code="method_not_allowed")
    assert response.headers["allow"] == "DELETE, GET, PATCH"
