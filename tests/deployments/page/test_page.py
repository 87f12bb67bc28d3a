"""The page over the real service: the embedded model, two groups, and a Chromium that watches."""

import pytest
from playwright.sync_api import expect

QUESTION = "What is the capital of France?"
CHAIN = ["planner", "critic", "refiner", "judger"]
NUM_STEPS = 3
NUM_LENS_TOKENS = 5
MODES = ["latent", "text", "single"]

pytestmark = [pytest.mark.serve, pytest.mark.slow]


@pytest.fixture(scope="module")
def service(deploy, embedded_model_path):
    engine = {
        "model_name": str(embedded_model_path),
        "device": "cpu",
        "kv_cache_bytes": 2**28,
    }
    thinkers = {"name": "thinkers", "agents": ["planner", "critic", "medical", "coder"]}
    deciders = {"name": "deciders", "agents": ["refiner", "math", "judger"]}
    return deploy({"engine": engine, "latent_steps": NUM_STEPS, "groups": [thinkers, deciders]})


@pytest.fixture
def guest(visitor, service):
    """At the page, with a short question on it that has one answer."""
    visitor.open(service.url)
    visitor.fill(Question=QUESTION, Max_tokens=12, Temperature=0)
    yield visitor
    service.wait_until_idle()


def test_a_question_is_answered_and_the_agents_are_seen_thinking_in_order(guest):
    guest.press("Ask")
    assert "Paris" in guest.wait_for_answer()
    assert guest.texts(".row-name") == CHAIN
    starts = [
        guest.page.locator(f'.row[data-agent="{agent}"] [data-phase="queued"]').bounding_box()["x"]
        for agent in CHAIN
    ]
    assert starts == sorted(starts)
    for agent in CHAIN[:3]:
        phases = guest.attributes(f'.row[data-agent="{agent}"] .bar', "data-phase")
        assert "thinking" in phases, agent
        assert "speaking" not in phases, agent
    assert "speaking" in guest.attributes('.row[data-agent="judger"] .bar', "data-phase")
    assert "handed on" in guest.texts('.row[data-agent="critic"] .row-state')[0]
    assert guest.attributes("#graph .node.state-done", "data-node") == CHAIN
    assert guest.attributes("#thoughts details", "data-agent") == CHAIN[:3]
    steps = guest.page.locator('#thoughts [data-agent="planner"] .step')
    assert steps.count() == NUM_STEPS
    assert steps.first.locator(".token").count() == NUM_LENS_TOKENS
    assert all(text.strip() for text in guest.texts('[data-agent="planner"] .token bdi'))
    totals = guest.texts("#totals dd")
    assert totals[2] == str(3 * NUM_STEPS)
    assert totals[4].endswith("1 hop")


def test_experts_are_seen_thinking_at_the_same_time(guest):
    guest.choose(pipeline="parallel")
    guest.press("Ask")
    guest.wait_for_answer()
    assert set(guest.texts(".row-name")) == {"medical", "math", "coder", "judger"}
    boxes = {
        agent: guest.page.locator(f'.row[data-agent="{agent}"] .track .bar').last.bounding_box()
        for agent in ("medical", "math", "coder")
    }
    starts = {
        agent: guest.page.locator(f'.row[data-agent="{agent}"] .bar').first.bounding_box()["x"]
        for agent in boxes
    }
    ends = {agent: box["x"] + box["width"] for agent, box in boxes.items()}
    assert max(starts.values()) < min(ends.values()), "nobody ran beside the others"


def test_the_modes_are_compared_in_a_chart_and_a_table(guest):
    guest.press("Compare modes")
    expect(guest.status).to_have_text("All three modes have answered.", timeout=60_000)
    assert guest.texts("#comparison article h3") == MODES
    assert all(guest.texts("#comparison article .answer"))
    expect(guest.page.get_by_role("img", name="What each mode took")).to_be_visible()
    rows = guest.page.get_by_role("table", name="What each mode took").locator("tbody tr")
    cells = {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in rows.all()
    }
    assert cells["Latent steps"] == [str(3 * NUM_STEPS), "0", "0"]
    latent, text, single = (int(count) for count in cells["Written tokens"])
    assert latent <= 12
    assert single <= 12 < text


def test_what_the_service_refuses_is_told(guest, service):
    guest.fill(Latent_steps=100_000)
    guest.press("Ask")
    expect(guest.alert).to_contain_text("latent_steps")
    expect(guest.field("Latent steps")).to_be_focused()
    guest.expects("422")


def test_a_long_run_is_cancelled_and_leaves_nothing(guest, service):
    guest.fill(Max_tokens=2000, Temperature=1)
    guest.choose(mode="text")
    guest.press("Ask")
    expect(guest.page.locator('.row[data-state="speaking"]')).to_have_count(1)
    guest.press("Cancel")
    expect(guest.status).to_have_text("Cancelled.")
    service.wait_until_idle()
    guest.expects("ERR_ABORTED")


def test_replicas_and_adapters_of_the_service_are_shown(guest):
    panel = guest.page.locator("#service")
    for text in ("thinkers", "deciders", "0 running, 0 waiting", "none loaded", "in the registry"):
        expect(panel).to_contain_text(text)
