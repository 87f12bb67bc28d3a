"""The page for whoever has no mouse, no eyes, a small screen or a dark room."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.deployments.page.scripted import ANSWER
from tests.deployments.page.visitor import NARROW, NARROWEST, WIDE, Visitor

STANDARDS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
MAX_TABS = 60
SCHEMES = ("light", "dark")
FOCUSED_JS = """() => {
    const one = document.activeElement;
    const style = getComputedStyle(one);
    const box = one.getBoundingClientRect();
    return {
        id: one.id,
        text: one.innerText ?? "",
        name: one.labels?.[0]?.innerText ?? one.getAttribute("aria-label") ?? one.innerText,
        is_outlined: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
        is_seen: box.bottom > 0 && box.top < innerHeight && box.width > 0,
    };
}"""


def run_axe(visitor):
    """Violations as axe-core tells them, evaluated beside the page's own policy."""
    results = Axe().run(visitor.page, options={"runOnly": STANDARDS})
    return [
        f"{one['id']}: {node['html']} {node['failureSummary']}"
        for one in results.response["violations"]
        for node in one["nodes"]
    ], {one["id"] for one in results.response["passes"]}


def ask(visitor):
    visitor.fill(Question="Why?")
    visitor.press("Ask")
    assert visitor.wait_for_answer() == ANSWER


def compare(visitor):
    visitor.press("Compare modes")
    expect(visitor.status).to_have_text("All three modes have answered.")


def overflow_of(visitor):
    """How far the page is wider than its window, and which elements stick out."""
    return visitor.page.evaluate(
        """() => [
            document.documentElement.scrollWidth - innerWidth,
            [...document.querySelectorAll("body *")]
                .filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5)
                .filter((one) => !one.closest(".scroller, .skip-link"))
                .map((one) => one.outerHTML.slice(0, 80)),
        ]"""
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_nothing_empty_answered_refused_or_compared(browser, url, scheme):
    with Visitor(browser, scheme=scheme) as visitor:
        visitor.open(url)
        violations, passed = run_axe(visitor)
        assert violations == []
        assert {"color-contrast", "label", "button-name", "html-has-lang"} <= passed
        visitor.press("Ask")
        expect(visitor.alert).to_contain_text("The question is missing.")
        assert run_axe(visitor)[0] == []
        ask(visitor)
        compare(visitor)
        for summary in visitor.page.locator("summary").all():
            if not summary.evaluate("(one) => one.parentElement.open"):
                summary.click()
        assert run_axe(visitor)[0] == []


CONTRAST_JS = """(a) => {
    const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const value = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
    const luminance = (color) => {
        paint.fillStyle = color;
        paint.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3).map((byte) => {
            const part = byte / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    return a.map(([one, other]) => {
        const both = [luminance(value(one)), luminance(value(other))];
        const [dark, light] = both.sort((x, y) => x - y);
        return (light + 0.05) / (dark + 0.05);
    });
}"""
TEXT = ("--ink", "--muted", "--accent")
GROUNDS = ("--paper", "--surface", "--sunken")
FILLS = ("--queued", "--prefill", "--thinking", "--speaking", "--handoff", "--edge", "--danger")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_has_contrast_enough_on_every_ground_and_colours_on_theirs(browser, url, scheme):
    text = [(one, ground) for one in TEXT for ground in GROUNDS]
    text += [("--on-accent", "--accent"), ("--danger", "--danger-soft"), ("--ink", "--accent-soft")]
    fills = [(fill, "--surface") for fill in FILLS]
    fills += [(fill, "--sunken") for fill in FILLS[1:5]]
    with Visitor(browser, scheme=scheme) as visitor:
        visitor.open(url)
        ratios = dict(zip(text, visitor.page.evaluate(CONTRAST_JS, text), strict=True))
        assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}
        ratios = dict(zip(fills, visitor.page.evaluate(CONTRAST_JS, fills), strict=True))
        assert {pair: ratio for pair, ratio in ratios.items() if ratio < 3.0} == {}


@pytest.mark.parametrize("size", [NARROW, NARROWEST], ids=lambda size: str(size[0]))
def test_a_narrow_page_never_scrolls_sideways(browser, url, reasoner, size):
    reasoner.lens_text = "Donaudampfschifffahrtsgesellschaft"
    with Visitor(browser, size) as visitor:
        visitor.open(url)
        assert overflow_of(visitor) == [0, []]
        for pipeline in reasoner.pipelines:
            visitor.choose(pipeline=pipeline)
            assert overflow_of(visitor) == [0, []], pipeline
        visitor.choose(pipeline="diamond")
        reasoner.answer = "x" * 300
        visitor.fill(Question="y" * 300)
        visitor.press("Ask")
        visitor.wait_for_answer()
        compare(visitor)
        for summary in visitor.page.locator("summary").all():
            if not summary.evaluate("(one) => one.parentElement.open"):
                summary.click()
        assert overflow_of(visitor) == [0, []]


def test_fields_and_buttons_are_large_enough_for_a_finger(browser, url):
    with Visitor(browser, NARROW) as visitor:
        visitor.open(url)
        for one in (
            visitor.page.locator("main, form, aside").locator("button, select, textarea").all()
        ):
            if one.is_visible():
                assert one.bounding_box()["height"] >= 24, one.inner_text()
        for one in visitor.page.locator("#ask label:has(input[type=radio]), .switch").all():
            assert one.bounding_box()["height"] >= 24, one.inner_text()


def tab_to(visitor, wanted):
    """Go on by the tabulator until there; fails where the focus cannot be seen on the way."""
    for _ in range(MAX_TABS):
        visitor.page.keyboard.press("Tab")
        focused = visitor.page.evaluate(FOCUSED_JS)
        assert focused["is_outlined"], focused
        assert focused["is_seen"], focused
        if wanted in (focused["id"], focused["text"].strip()):
            return
    raise AssertionError(f"{wanted} cannot be reached")


def test_everything_works_by_keyboard_alone(visitor, url, reasoner):
    visitor.open(url)
    keyboard = visitor.page.keyboard
    keyboard.press("Tab")
    assert visitor.page.evaluate(FOCUSED_JS)["text"] == "Skip to the results"
    tab_to(visitor, "question")
    keyboard.type("Why?")
    tab_to(visitor, "Why is the sky blue?")
    keyboard.press("Enter")
    expect(visitor.field("Question")).to_have_value("Why is the sky blue?")
    tab_to(visitor, "pipeline")
    keyboard.press("ArrowDown")
    tab_to_mode(visitor)
    keyboard.press("ArrowDown")
    tab_to(visitor, "max_tokens")
    keyboard.type("7")
    tab_to(visitor, "lens")
    keyboard.press("Space")
    tab_to(visitor, "Ask")
    keyboard.press("Enter")
    visitor.wait_for_answer()
    assert visitor.page.evaluate(FOCUSED_JS)["text"] == "Ask", "the focus got lost"
    (request,) = reasoner.requests
    assert (request.question, request.pipeline) == ("Why is the sky blue?", "parallel")
    assert (request.mode, request.max_tokens, request.trace) == ("text", 7, "off")
    tab_to(visitor, "In numbers")
    keyboard.press("Enter")
    expect(visitor.page.get_by_role("table", name="What each agent did")).to_be_visible()
    tab_to(visitor, "Refresh")


def tab_to_mode(visitor):
    visitor.page.keyboard.press("Tab")
    assert visitor.page.evaluate("document.activeElement.name") == "mode"


def test_ctrl_enter_asks_and_the_skip_link_leads_to_the_results(visitor, url):
    visitor.open(url)
    visitor.page.keyboard.press("Tab")
    visitor.page.keyboard.press("Enter")
    assert visitor.page.evaluate("document.activeElement.id") == "results"
    visitor.field("Question").fill("Why?")
    visitor.page.keyboard.press("Control+Enter")
    assert visitor.wait_for_answer() == ANSWER


def test_focus_goes_back_when_the_button_under_it_goes(visitor, url, reasoner):
    visitor.open(url)
    visitor.fill(Question="Why?")
    reasoner.may_go_on.clear()
    visitor.press("Ask")
    visitor.page.get_by_role("button", name="Cancel").focus()
    visitor.page.keyboard.press("Enter")
    expect(visitor.status).to_have_text("Cancelled.")
    assert visitor.page.evaluate("document.activeElement.id") == "ask-button"
    visitor.expects("ERR_ABORTED")


def test_the_answer_is_read_aloud_once_it_is_complete(visitor, url, reasoner):
    visitor.open(url)
    answer = visitor.page.locator("#answer")
    expect(answer).to_have_attribute("aria-live", "polite")
    visitor.fill(Question="Why?")
    reasoner.may_go_on.clear()
    visitor.press("Ask")
    expect(answer).to_have_attribute("aria-busy", "true")
    reasoner.may_go_on.set()
    visitor.wait_for_answer()
    expect(answer).to_have_attribute("aria-busy", "false")


def test_wide_and_narrow_show_the_form_before_the_results(browser, url):
    for size in (WIDE, NARROW):
        with Visitor(browser, size) as visitor:
            visitor.open(url)
            form = visitor.page.locator("#ask").bounding_box()
            results = visitor.page.locator("main").bounding_box()
            is_beside = form["x"] + form["width"] <= results["x"]
            is_above = form["y"] + form["height"] <= results["y"]
            assert is_beside if size == WIDE else is_above
            ask(visitor)
            assert visitor.page.locator("#graph").bounding_box()["y"] < size[1] / 2, "out of sight"
