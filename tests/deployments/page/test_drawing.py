"""Graph, time line, thoughts and what lies behind them, over scripted runs."""

import itertools

import pytest
from playwright.sync_api import expect
from starlette.applications import Starlette
from starlette.routing import Mount

from deployments.api.access import Access
from tests.deployments.keys import make_app
from tests.deployments.page.scripted import ANSWER, DIAMOND, NUM_STEPS, serving
from tests.deployments.page.visitor import NARROW, WIDE, Visitor

CHAIN = ["planner", "critic", "refiner", "judger"]


def boxes_of(visitor):
    """The drawn boxes of the graph by node: x, y, width, height."""
    return {
        node.get_attribute("data-node"): node.locator("rect").bounding_box()
        for node in visitor.page.locator("#graph .node").all()
    }


def overlap(one, other):
    return (
        one["x"] < other["x"] + other["width"]
        and other["x"] < one["x"] + one["width"]
        and one["y"] < other["y"] + other["height"]
        and other["y"] < one["y"] + one["height"]
    )


def flow_of(first, last):
    return max("xy", key=lambda axis: last[axis] - first[axis])


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_every_pipeline_is_drawn_with_its_nodes_and_edges(browser, url, reasoner, size):
    with Visitor(browser, size) as visitor:
        visitor.open(url)
        for pipeline, spec in reasoner.pipelines.items():
            visitor.choose(pipeline=pipeline)
            edges = {f"{parent} {node.name}" for node in spec.nodes for parent in node.after}
            expect(visitor.page.locator("#graph .node")).to_have_count(len(spec.nodes))
            assert set(visitor.attributes("#graph .edge", "data-edge")) == edges
            boxes = boxes_of(visitor)
            pairs = itertools.combinations(boxes.values(), 2)
            assert not any(overlap(one, other) for one, other in pairs), pipeline
            flow = flow_of(boxes[spec.nodes[0].name], boxes[spec.speaker.name])
            assert flow == "x" or size == NARROW
            for node in spec.nodes:
                for parent in node.after:
                    assert boxes[parent][flow] + 20 < boxes[node.name][flow], pipeline


def test_an_edge_that_passes_nodes_by_crosses_none_of_their_boxes(visitor, url):
    visitor.open(url)
    nodes = [{"name": node.name, "after": list(node.after)} for node in DIAMOND.nodes]
    size = {"length": 100, "breadth": 50, "gap": 30, "gapAcross": 10}
    layout = visitor.call("graph_layout.js", "m.layOut(a[0], a[1])", nodes, size)
    (edge,) = [e for e in layout["edges"] if (e["from"], e["to"]) == ("planner", "judger")]
    bends = edge["points"][1:-1]
    assert len(bends) == 2 * 2  # into and out of each layer that it passes
    boxes = visitor.call("graph_layout.js", "[...m.layOut(a[0], a[1]).boxes]", nodes, size)
    for bend in bends:
        for _, box in boxes:
            along, across = (abs(bend[axis] - box[axis]) for axis in ("along", "across"))
            assert along > 60 or across > 25, (bend, box)


def test_nodes_of_one_layer_stand_as_their_pipeline_names_them(visitor, url):
    visitor.open(url)
    visitor.choose(pipeline="parallel")
    boxes = boxes_of(visitor)
    experts = sorted(("medical", "math", "coder"), key=lambda name: boxes[name]["y"])
    assert experts == ["medical", "math", "coder"]


def test_a_run_shows_agents_in_order_with_phases_thoughts_and_bytes(visitor, url):
    visitor.open(url)
    visitor.fill(Question="Why?")
    visitor.press("Ask")
    assert visitor.wait_for_answer() == ANSWER
    assert visitor.texts(".row-name") == CHAIN
    assert visitor.attributes(".row", "data-state") == ["done"] * 4
    thinking = visitor.attributes('.row[data-agent="planner"] .bar', "data-phase")
    assert thinking == ["queued", "prefill", "thinking"]
    handing = visitor.attributes('.row[data-agent="critic"] .bar', "data-phase")
    assert handing == ["queued", "prefill", "thinking", "handoff"]
    taking = visitor.attributes('.row[data-agent="refiner"] .bar', "data-phase")
    assert taking == ["handoff", "queued", "prefill", "thinking"]
    assert visitor.attributes('.row[data-agent="judger"] .bar', "data-phase")[-1] == "speaking"
    assert "4.0 MiB handed on" in visitor.texts('.row[data-agent="critic"] .row-state')[0]
    assert visitor.attributes("#thoughts details", "data-agent") == CHAIN[:3]
    assert visitor.page.locator("#thoughts .step").count() == 3 * NUM_STEPS
    first = visitor.page.locator("#thoughts .step").first.inner_text().split()
    assert first[:6] == ["1", "norm", "54.1", "␣Paris", "60", "%"]
    assert first[-2:] == ["<1", "%"]


@pytest.mark.parametrize("mode", ["text", "single"])
def test_modes_without_latent_thoughts_show_who_takes_part_and_what_they_wrote(visitor, url, mode):
    visitor.open(url)
    visitor.choose(mode=mode)
    visitor.fill(Question="Why?")
    visitor.press("Ask")
    assert visitor.wait_for_answer() == ANSWER
    if mode == "single":
        assert visitor.texts(".row-name") == ["judger"]
        assert visitor.texts("#graph .state-absent .node-state") == ["not asked"] * 3
        assert visitor.page.locator("#thoughts details").count() == 0
    else:
        assert visitor.attributes("#thoughts details", "data-agent") == CHAIN[:3]
        assert visitor.texts("#thoughts .said")[0] == "planner wrote this."


def test_fields_go_with_the_request_and_empty_ones_stay_the_agents_own(visitor, url, reasoner):
    visitor.open(url)
    visitor.fill(Question="Why?")
    visitor.press("Ask")
    visitor.wait_for_answer()
    visitor.choose(pipeline="diamond", mode="text")
    visitor.fill(Latent_steps=2, Max_tokens=7, Temperature=0.5, Seed=3)
    visitor.field("Lens").uncheck()
    visitor.press("Ask")
    expect(visitor.page.locator(".row")).to_have_count(len(DIAMOND.nodes))
    visitor.wait_for_answer()
    plain, full = reasoner.requests
    assert (plain.pipeline, plain.mode, plain.trace) == ("hierarchical", "latent", "lens")
    assert (plain.latent_steps, plain.max_tokens, plain.temperature, plain.seed) == (None,) * 4
    assert (full.pipeline, full.mode, full.trace) == ("diamond", "text", "off")
    assert (full.latent_steps, full.max_tokens, full.temperature, full.seed) == (2, 7, 0.5, 3)


def test_a_comparison_has_three_answers_a_chart_and_a_table_that_says_the_same(
    visitor, url, reasoner
):
    visitor.open(url)
    visitor.fill(Question="Why?", Seed=3)
    visitor.press("Compare modes")
    expect(visitor.status).to_have_text("All three modes have answered.")
    assert [(r.mode, r.seed) for r in reasoner.requests] == [
        ("latent", 3),
        ("text", 3),
        ("single", 3),
    ]
    assert visitor.texts("#comparison article h3") == ["latent", "text", "single"]
    assert visitor.texts("#comparison article .answer") == [ANSWER] * 3
    chart = visitor.page.get_by_role("img", name="What each mode took")
    expect(chart).to_be_visible()
    drawn = chart.locator(".number").all_inner_texts()
    rows = visitor.page.get_by_role("table", name="What each mode took").locator("tbody tr")
    told = [cell for row in rows.all() for cell in row.locator("td").all_inner_texts()]
    assert drawn == told
    assert told[:3] == ["1.60 s", "1.60 s", "400 ms"]
    written = rows.nth(3).locator("td").all_inner_texts()
    assert written == ["9", "36", "9"]
    widths = [b.bounding_box()["width"] for b in chart.locator(".mode-bar").all()[:3]]
    assert widths[0] == widths[1] == pytest.approx(4 * widths[2], rel=0.02)


def test_replicas_load_and_adapters_are_shown_and_refreshed(visitor, url, reasoner):
    visitor.open(url)
    service = visitor.page.locator("#service")
    expect(service).to_contain_text("2 running, 1 waiting")
    expect(service).to_contain_text("25 % of the cache in use")
    expect(service).to_contain_text("no replica answers")
    expect(service).to_contain_text("none loaded")
    reasoner.adapters.listed = [
        {"name": "mine", "rank": 8, "pinned": True, "states": {"thinkers": ["ready"]}}
    ]
    visitor.press("Refresh")
    expect(service).to_contain_text("rank 8 · pinned · thinkers: ready")


def test_the_page_asks_now_and_then_but_not_while_it_is_hidden(visitor, url):
    visitor.page.clock.install()
    calls = []
    visitor.page.on("request", lambda request: calls.append(request.url))
    visitor.open(url)
    expect(visitor.page.locator("#service")).to_contain_text("2 running")
    first = len([call for call in calls if call.endswith("/v1/stats")])
    with visitor.page.expect_request("**/v1/stats"):
        visitor.page.clock.run_for(16_000)
    visitor.page.evaluate("Object.defineProperty(document, 'hidden', {get: () => true})")
    expect(visitor.page.locator("#service")).to_contain_text("2 running")
    before = len(calls)
    visitor.page.clock.run_for(60_000)
    assert first == 1
    assert len(calls) == before


def test_the_page_works_under_a_prefix(visitor, reasoner):
    app = Starlette(routes=[Mount("/team/app", make_app(reasoner, Access()))])
    with serving(app) as url:
        visitor.open(f"{url}/team/app")
        visitor.fill(Question="Why?")
        visitor.press("Ask")
        assert visitor.wait_for_answer() == ANSWER


EVENTS_JS = """m.readEvents(new ReadableStream({
    start(controller) {
        for (const piece of a[0]) controller.enqueue(Uint8Array.from(piece));
        controller.close();
    },
}))"""
COLLECTED_JS = f"await Array.fromAsync({EVENTS_JS})"


def test_events_are_read_wherever_the_stream_is_cut(visitor, url):
    visitor.open(url)
    wire = 'event: one\ndata: {"text": "Zoë 🦊"}\n\n: comment\n\nevent: two\ndata: {"n": 2}\n\n'
    content = list(wire.encode())
    for size in (1, 2, 3, 7, len(content)):
        pieces = [content[i : i + size] for i in range(0, len(content), size)]
        assert visitor.call("sse.js", COLLECTED_JS, pieces) == [
            {"name": "one", "content": {"text": "Zoë 🦊"}},
            {"name": "two", "content": {"n": 2}},
        ], size


RUN_JS = """(() => {
    const run = new m.Run(a[0], "latent");
    for (const event of a[1]) run.apply(event);
    return [...run.agents.values()].map(({name, state, spans, reason, numSteps}) =>
        ({name, state, spans, reason, numSteps}));
})()"""
PIPELINE = {
    "name": "pair",
    "speaker": "judger",
    "nodes": [{"name": "planner", "after": []}, {"name": "judger", "after": ["planner"]}],
    "stages": [
        {"name": "planner", "group": "a", "nodes": ["planner"], "parents": []},
        {"name": "judger", "group": "b", "nodes": ["judger"], "parents": ["planner"]},
    ],
}


def event(name, at_ms, **content):
    return {"name": name, "content": content | {"at_ms": at_ms}}


def test_a_stage_that_is_tried_again_begins_anew(visitor, url):
    visitor.open(url)
    events = [
        event("stage.started", 1, stage="planner", group="a", agents=["planner"], attempt=1),
        event("agent.started", 2, agent="planner", stage="planner"),
        event("agent.phase", 3, agent="planner", phase="thinking"),
        event("agent.thought", 4, agent="planner", latent_steps=1),
        event("stage.retried", 5, stage="planner", attempt=2, reason="lost"),
        event("stage.started", 6, stage="planner", group="a", agents=["planner"], attempt=2),
        event("agent.started", 7, agent="planner", stage="planner"),
    ]
    planner, judger = visitor.call("run.js", RUN_JS, PIPELINE, events)
    assert planner["spans"] == [{"phase": "queued", "from": 7, "to": None}]
    assert (planner["state"], planner["numSteps"], judger["state"]) == ("queued", 0, "waiting")


def test_an_agent_that_is_gone_without_has_its_reason(visitor, url):
    visitor.open(url)
    events = [
        event("stage.started", 1, stage="planner", group="a", agents=["planner"], attempt=1),
        event("agent.started", 2, agent="planner", stage="planner"),
        event("stage.failed", 9, stage="planner", agents=["planner"], reason="too slow"),
    ]
    planner, _ = visitor.call("run.js", RUN_JS, PIPELINE, events)
    assert (planner["state"], planner["reason"]) == ("failed", "too slow")
    assert planner["spans"] == [{"phase": "queued", "from": 2, "to": 9}]


READ_AS = {
    'm.visible(" the")': "␣the",
    'm.visible("a b")': "a b",
    'm.visible("  ")': "␣␣",
    'm.visible("\\n")': "⏎",
    'm.visible("")': "∅",
    "m.percent(0.0001)": "<1 %",
    "m.percent(0)": "0 %",
    "m.duration(999.4)": "999 ms",
    "m.duration(1234)": "1.23 s",
    "m.bytes(1536)": "2 KiB",
    "m.bytes(4 * 2 ** 20)": "4.0 MiB",
    "m.roundUp(1001)": 1500,
    "m.roundUp(500)": 500,
}


def test_numbers_and_tokens_read_well(visitor, url):
    visitor.open(url)
    for expression, told in READ_AS.items():
        assert visitor.call("units.js", expression) == told, expression
