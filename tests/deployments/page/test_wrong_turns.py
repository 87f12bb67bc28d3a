"""What a person is told when something is wrong, and that they can go on afterwards."""

import re

import pytest
from playwright.sync_api import expect

from deployments.access import Limits
from latentmas_core.errors import EngineError
from tests.deployments.keys import ALICE, make_access, make_app
from tests.deployments.page.scripted import ANSWER, serving

WRONG_KEY = "lm-mallory-0123456789abcdef"
# The page reads these when it opens: pipelines, load, adapters.
NUM_CALLS_AT_START = 3


@pytest.fixture
def guarded_url(reasoner):
    with serving(make_app(reasoner, make_access())) as url:
        yield url


def enter_key(visitor, key):
    visitor.page.get_by_label("Key", exact=True).fill(key)
    visitor.press("Use this key")


def test_a_missing_and_a_wrong_key_are_told_and_the_right_one_lets_in(visitor, guarded_url):
    visitor.page.goto(guarded_url)
    expect(visitor.alert).to_contain_text("an API key is missing")
    key = visitor.page.get_by_label("Key", exact=True)
    expect(key).to_be_focused()
    enter_key(visitor, WRONG_KEY)
    expect(visitor.alert).to_contain_text("this API key is not known here")
    enter_key(visitor, ALICE)
    expect(visitor.status).to_have_text("Ready.")
    expect(visitor.alert).to_be_empty()
    expect(key).to_have_value("")
    visitor.fill(Question="Why?")
    visitor.press("Ask")
    assert visitor.wait_for_answer() == ANSWER
    visitor.expects("401")


def test_a_key_stays_in_its_tab_and_goes_when_it_is_forgotten(visitor, guarded_url):
    visitor.page.goto(guarded_url)
    expect(visitor.alert).to_contain_text("an API key is missing")
    enter_key(visitor, ALICE)
    expect(visitor.page.locator("#service")).to_contain_text("none loaded")
    visitor.page.reload()
    expect(visitor.page.locator("#service")).to_contain_text("none loaded")
    assert ALICE not in visitor.page.content()
    assert ALICE not in visitor.page.url
    assert visitor.page.evaluate("localStorage.length + document.cookie.length") == 0
    visitor.page.get_by_text("API key").click()
    visitor.press("Forget it")
    expect(visitor.alert).to_contain_text("an API key is missing")
    assert visitor.page.evaluate("sessionStorage.length") == 0
    visitor.expects("401")


def test_what_can_be_no_key_is_not_sent(visitor, guarded_url):
    visitor.page.goto(guarded_url)
    expect(visitor.alert).to_contain_text("an API key is missing")
    enter_key(visitor, "schlüssel mit blank")
    expect(visitor.alert).to_contain_text("This can be no key")
    visitor.expects("401")


def test_a_missing_question_is_told_before_anything_is_sent(visitor, url, reasoner):
    visitor.open(url)
    visitor.press("Ask")
    expect(visitor.alert).to_contain_text("The question is missing.")
    expect(visitor.field("Question")).to_be_focused()
    assert reasoner.requests == []


REFUSED = (
    ("Max tokens", "0", "max_tokens is 0: Input should be greater than or equal to 1"),
    ("Latent steps", "-1", "latent_steps is -1"),
    ("Latent steps", "2.5", "latent_steps is 2.5"),
    ("Temperature", "3", "temperature is 3"),
    ("Seed", "12345678901234567890", "Seed is larger than a browser can send exactly."),
)


def test_a_refused_field_is_named_marked_and_gone_to(visitor, url, reasoner):
    visitor.open(url)
    visitor.fill(Question="Why?")
    for label, value, told in REFUSED:
        field = visitor.field(label)
        field.fill(value)
        visitor.press("Ask")
        expect(visitor.alert).to_contain_text(told)
        expect(field).to_be_focused()
        expect(field).to_have_attribute("aria-invalid", "true")
        field.fill("")
    assert reasoner.requests == []
    visitor.press("Ask")
    visitor.wait_for_answer()
    expect(visitor.alert).to_be_empty()
    expect(visitor.page.locator("[aria-invalid=true]")).to_have_count(0)
    visitor.expects("422")


def test_a_limit_says_when_to_try_again(visitor, reasoner):
    limits = {ALICE: Limits(max_requests_per_minute=NUM_CALLS_AT_START * 2)}
    with serving(make_app(reasoner, make_access(limits=limits))) as url:
        visitor.page.goto(url)
        enter_key(visitor, ALICE)
        expect(visitor.status).to_have_text("Ready.")
        visitor.fill(Question="Why?")
        for _ in range(NUM_CALLS_AT_START + 1):
            visitor.press("Ask")
            expect(visitor.page.locator("#cancel-button")).to_be_hidden()
        expect(visitor.alert).to_contain_text("max_requests_per_minute of this key is 6")
        hint = re.compile(r"Try again in \d+ seconds?, at \d\d:\d\d:\d\d\.")
        expect(visitor.alert).to_contain_text(hint)
        visitor.expects("401|429")


def test_a_busy_service_says_when_to_try_again_whatever_answers_for_it(visitor, url):
    visitor.open(url)
    visitor.fill(Question="Why?")
    busy = {"status": 503, "headers": {"retry-after": "1"}, "body": "Too many requests in queue"}
    visitor.page.route("**/v1/reason", lambda route: route.fulfill(**busy))
    visitor.press("Ask")
    expect(visitor.alert).to_contain_text("Too many requests in queue")
    expect(visitor.alert).to_contain_text("Try again in 1 second, at ")
    visitor.expects("503")


CUT = (
    "",
    'event: answer.delta\ndata: {"text": "Par',
    'event: answer.delta\ndata: {"text": "Paris", "at_ms": 1}\n\n',
)


def test_a_stream_that_is_cut_is_no_answer(visitor, url):
    visitor.open(url)
    visitor.fill(Question="Why?")
    bodies = iter(CUT)
    headers = {"content-type": "text/event-stream"}
    visitor.page.route(
        "**/v1/reason", lambda route: route.fulfill(headers=headers, body=next(bodies))
    )
    for _ in CUT:
        visitor.press("Ask")
        expect(visitor.page.locator("#cancel-button")).to_be_hidden()
        expect(visitor.alert).to_contain_text("The connection ended before the answer did.")
        assert visitor.page.locator("#totals").inner_text() == ""


def test_a_run_that_fails_halfway_says_why_and_stops_everybody(visitor, url, reasoner):
    reasoner.error, reasoner.fails_at = EngineError("the replica was lost for good."), 4
    visitor.open(url)
    visitor.fill(Question="Why?")
    visitor.press("Ask")
    expect(visitor.alert).to_contain_text("the replica was lost for good.")
    states = visitor.attributes(".row", "data-state")
    assert states == ["stopped"] * 4
    reasoner.error = None
    visitor.press("Ask")
    assert visitor.wait_for_answer() == ANSWER


def test_a_service_that_is_gone_is_told(visitor, url):
    visitor.open(url)
    visitor.fill(Question="Why?")
    visitor.page.route("**/v1/reason", lambda route: route.abort("connectionrefused"))
    visitor.press("Ask")
    expect(visitor.alert).to_contain_text("The service cannot be reached.")
    visitor.expects("ERR_CONNECTION_REFUSED")


def test_a_running_question_can_be_cancelled_and_the_service_hears_of_it(visitor, url, reasoner):
    visitor.open(url)
    visitor.fill(Question="Why?")
    reasoner.may_go_on.clear()
    visitor.press("Ask")
    expect(visitor.page.get_by_role("button", name="Ask", exact=True)).to_have_attribute(
        "aria-disabled", "true"
    )
    visitor.press("Cancel")
    expect(visitor.status).to_have_text("Cancelled.")
    assert reasoner.has_left.wait(5.0), "the service goes on for nobody"
    expect(visitor.alert).to_be_empty()
    visitor.expects("ERR_ABORTED")
    reasoner.may_go_on.set()
    visitor.press("Ask")
    assert visitor.wait_for_answer() == ANSWER


def test_a_comparison_ends_with_the_first_mode_that_fails(visitor, url, reasoner):
    reasoner.error, reasoner.fails_at = EngineError("nobody is there."), 2
    visitor.open(url)
    visitor.fill(Question="Why?")
    visitor.press("Compare modes")
    expect(visitor.alert).to_contain_text("nobody is there.")
    states = visitor.texts("#comparison article .hint")
    assert states == ["nobody is there.", "not asked", "not asked"]
    assert len(reasoner.requests) == 1


def test_text_of_others_is_never_markup(visitor, url, reasoner):
    hostile = "<img src=x onerror=alert(1)><script>alert(1)</script>\u202e"
    reasoner.answer = reasoner.lens_text = hostile
    visitor.open(url)
    visitor.fill(Question=hostile)
    visitor.press("Ask")
    assert visitor.wait_for_answer() == hostile
    assert visitor.page.locator(".token bdi").first.inner_text() == hostile
    assert visitor.page.locator("main img, main script").count() == 0
