"""Calls of tools are found in an answer, and nothing else is taken for one."""

import pytest

from latentmas_core.agents.tool_calls import HeldBack, parse_tool_calls
from latentmas_core.chat import ToolCall

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
WEATHER = ToolCall(name="weather", arguments={"city": "Paris"})
KNOWN = {"weather", "time"}


def test_call_is_taken_out_of_the_text() -> None:
    assert parse_tool_calls(f"Let me look.\n{CALL}", KNOWN) == ("Let me look.", (WEATHER,))


def test_several_calls_keep_their_order() -> None:
    second = '<tool_call>{"name": "time"}</tool_call>'
    content, calls = parse_tool_calls(f"{CALL}\n{second}", KNOWN)
    assert (content, calls) == ("", (WEATHER, ToolCall(name="time")))


def test_last_call_may_lack_its_end() -> None:
    assert parse_tool_calls(CALL.removesuffix("</tool_call>"), KNOWN).calls == (WEATHER,)


@pytest.mark.parametrize(
    "block",
    [
        "{}",
        "[]",
        "null",
        "weather(Paris)",
        '{"name": "weather", "arguments": {"city": ',
        '{"name": "weather", "arguments": "Paris"}',
        '{"name": "weather", "arguments": [1]}',
        '{"name": 3, "arguments": {}}',
        '{"name": "rm -rf", "arguments": {}}',
        '{"name": "unknown", "arguments": {}}',
        '{"name": "weather", "arguments": {"city": NaN}}',
        '{"name": "weather", "arguments": ' + "[" * 100_000,
    ],
)
def test_block_that_is_no_call_stays_text(block: str) -> None:
    text = f"{CALL} and <tool_call>{block}</tool_call>"
    assert parse_tool_calls(text, KNOWN) == (text, ())


def test_text_without_a_call_is_left_as_it_is() -> None:
    text = "  a < b, <tool_cal and </tool_call> \n"
    assert parse_tool_calls(text, KNOWN) == (text, ())


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    "text",
    [
        f"Let me look.\n{CALL}",
        f"{CALL}\n{CALL}",
        "no call, but a < b and <tool_cake>  \n\n",
        f"{CALL} and more",
        "<tool_call>broken</tool_call> tail",
        "ends with <tool_",
        " ",
        "",
    ],
)
def test_pieces_join_to_the_content_and_show_nothing_of_a_call(text: str, size: int) -> None:
    held = HeldBack()
    shown = [held.add(text[start : start + size]) for start in range(0, len(text), size)]
    spoken = parse_tool_calls(text, KNOWN)
    if spoken.calls:
        assert "<" not in "".join(shown)
    assert "".join(shown) + held.rest(spoken.content) == spoken.content


def test_text_is_shown_as_soon_as_it_cannot_begin_a_call() -> None:
    held = HeldBack()
    assert [held.add(piece) for piece in ("a", " <to", "es> b", "c")] == ["a", "", " <toes> b", "c"]
