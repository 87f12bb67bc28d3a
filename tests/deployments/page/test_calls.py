"""The list of all calls in a browser: it tells what the service describes; each can be tried."""

import json

import httpx
import pytest
from playwright.sync_api import expect

from tests.deployments.keys import ALICE, make_access, make_app
from tests.deployments.page.scripted import ANSWER, serving
from tests.deployments.page.test_accessible import SCHEMES, overflow_of, run_axe
from tests.deployments.page.visitor import NARROWEST, Visitor

OPEN_ALL_JS = "document.querySelectorAll('details').forEach((one) => { one.open = true; })"
CHAT, REASON, MODEL = "POST /v1/chat/completions", "POST /v1/reason", "GET /v1/models/{model}"


def open_docs(visitor, url):
    visitor.page.goto(f"{url}/docs")
    expect(visitor.page.locator("#status")).to_contain_text("call")


def opened(visitor, call):
    """The part of a call, unfolded."""
    part = visitor.page.locator(f'[data-call="{call}"]')
    part.locator("summary").first.click()
    return part


def try_it(part, *, body=None):
    if body is not None:
        part.get_by_label("Body").fill(body)
    part.get_by_role("button", name="Send").click()


def rows_of(part, call):
    """Type and meaning by field, of what a call takes."""
    rows = part.get_by_role("region", name=f"What {call} takes").locator("tbody tr").all()
    cells = [row.locator("th, td").all_text_contents() for row in rows]
    return {name: (kind, meaning) for name, kind, meaning in cells}


def test_every_call_is_listed_with_what_it_takes_and_answers(visitor, url):
    described = httpx.get(f"{url}/openapi.json").json()["paths"]
    open_docs(visitor, url)
    calls = [f"{method.upper()} {path}" for path in described for method in described[path]]
    assert visitor.attributes(".call", "data-call") == calls
    fields = rows_of(opened(visitor, REASON), REASON)
    assert fields["question"] == ("string", "required; What is asked.")
    kind, meaning = fields["mode"]
    assert kind == '"latent" or "text" or "single"'
    assert meaning.startswith('"latent" if it is left out; ')
    assert fields["latent_steps"][0] == "integer from 0 to 512 or null"
    assert "history[].tool_calls[].name" in fields
    fields = rows_of(opened(visitor, CHAT), CHAT)
    assert fields["messages[].role"][1].startswith("required")
    assert fields["latentmas.mode"][0] == '"latent" or "text" or "single"'
    assert fields["stop"][0] == "string or list of string, up to 4 or null"
    answers = opened(visitor, MODEL).get_by_role("region", name=f"What {MODEL} answers")
    statuses = answers.locator("tbody th").all_text_contents()
    assert {"200", "401", "404", "429", "500"} <= set(statuses)


def test_an_example_is_sent_and_its_answer_shown(visitor, url, reasoner):
    open_docs(visitor, url)
    part = opened(visitor, REASON)
    try_it(part)
    expect(part.get_by_role("status")).to_contain_text("200 OK")
    assert json.loads(part.locator("pre").inner_text())["final_answer"] == ANSWER
    part.get_by_role("button", name="stream").click()
    assert json.loads(part.get_by_label("Body").input_value())["stream"] is True
    try_it(part)
    expect(part.locator("pre")).to_contain_text("event: answer.done")
    assert len(reasoner.requests) == 2
    models = opened(visitor, MODEL)
    models.get_by_role("textbox", name="model").fill("latentmas/hierarchical")
    try_it(models)
    expect(models.locator("pre")).to_contain_text('"id": "latentmas/hierarchical"')


def test_fields_of_the_path_and_the_query_are_sent_there_and_empty_ones_are_not(visitor, url):
    places = {"id": "path", "limit": "query", "before": "query"}
    parameters = [
        {"name": name, "in": place, "schema": {"type": "string"}} for name, place in places.items()
    ]
    call = {"operationId": "shown", "parameters": parameters, "responses": {}}
    path = "/v1/models/{id}"
    parts = {"schemas": {}, "responses": {}}
    description = {"paths": {path: {"get": call}}, "components": parts}
    visitor.page.route("**/openapi.json", lambda route: route.fulfill(json=description))
    open_docs(visitor, url)
    part = opened(visitor, f"GET {path}")
    assert {name: told for name, (_, told) in rows_of(part, f"GET {path}").items()} == {
        name: f"in the {place}" for name, place in places.items()
    }
    part.get_by_role("textbox", name="id").fill("a b/c")
    part.get_by_role("textbox", name="limit").fill("2&3")
    with visitor.page.expect_request("**/v1/models/**") as sent:
        try_it(part)
    assert sent.value.url == f"{url}/v1/models/a%20b%2Fc?limit=2%263"
    expect(part.locator("pre")).to_contain_text("model_not_found")
    visitor.expects("404")


def test_what_is_refused_is_shown_as_it_was_answered(visitor, url):
    open_docs(visitor, url)
    part = opened(visitor, REASON)
    try_it(part, body='{"question": "Why?", "nonsense": 1}')
    expect(part.get_by_role("status")).to_contain_text("422")
    assert json.loads(part.locator("pre").inner_text())["error"]["param"] == "nonsense"
    try_it(part, body="<b>no JSON</b>")
    expect(part.locator("pre")).to_contain_text("not valid JSON")
    visitor.expects("422")


def test_a_stream_can_be_stopped_and_the_service_hears_of_it(visitor, url, reasoner):
    open_docs(visitor, url)
    part = opened(visitor, REASON)
    reasoner.may_go_on.clear()
    try_it(part, body='{"question": "Why?", "stream": true}')
    part.get_by_role("button", name="Stop").click()
    expect(part.get_by_role("status")).to_contain_text("Stopped")
    assert reasoner.has_left.wait(10)
    expect(part.get_by_role("button", name="Send")).to_be_visible()
    visitor.expects("failed: POST .*/v1/reason")


def test_a_key_is_asked_for_and_then_sent(visitor, reasoner):
    with serving(make_app(reasoner, make_access())) as url:
        open_docs(visitor, url)
        part = opened(visitor, REASON)
        try_it(part)
        expect(part.get_by_role("status")).to_contain_text("401")
        key = visitor.page.get_by_label("Key", exact=True)
        expect(key).to_be_focused()
        key.fill(ALICE)
        visitor.press("Use this key")
        try_it(part)
        expect(part.get_by_role("status")).to_contain_text("200 OK")
        visitor.expects("401")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_nothing_and_a_narrow_page_does_not_scroll_sideways(browser, url, scheme):
    with Visitor(browser, size=NARROWEST, scheme=scheme) as visitor:
        open_docs(visitor, url)
        opened(visitor, MODEL).get_by_text("Fields of the answer", exact=True).click()
        opened(visitor, REASON)
        assert run_axe(visitor)[0] == []
        visitor.page.evaluate(OPEN_ALL_JS)
        assert overflow_of(visitor) == [0, []]
