"""What is shown of a run: the board and its table, and plain lines."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from deployments.api.streaming import describe
from latentmas_core.cli.board import DONE, FAILED, WAITS, Board, describe_result
from latentmas_core.cli.view import LiveView, PlainView, harmless
from latentmas_core.cli.wire_events import read_event
from latentmas_core.events import (
    AgentPhase,
    AgentStarted,
    AgentThought,
    AnswerDone,
    Routed,
    StageGivenUp,
    StageRetried,
    StageStarted,
    ToolFinished,
    ToolStarted,
)
from latentmas_core.phases import Phase
from latentmas_core.result import ToolCallTrace
from latentmas_core.routing.domains import RoutingDecision
from tests.deployments.fake_reasoner import EVENTS, LENS_STEP, RESULT

DECISION = RoutingDecision(
    domain="math",
    confidence=1.0,
    evidence=("sum",),
    pipeline="auto.math",
    experts=("math",),
    reason="sum speaks for math; pipeline auto.math answers.",
)
TOOL_TRACE = ToolCallTrace(
    call_id="call-1", round=1, name="calculator", arguments={"expression": "6*7"}, text="42"
)
STARTED = StageStarted("refiner+judger", "deciders", ("refiner", "judger"), 1)
OTHERS = (
    StageRetried("critic", 2, "a replica was lost"),
    StageGivenUp("math", ("math",), "out of memory"),
    AgentThought("planner", 1, LENS_STEP),
    Routed(DECISION),
    ToolStarted("call-1", 1, "calculator", {"expression": "6*7"}),
    ToolFinished(TOOL_TRACE),
)


@pytest.mark.parametrize("event", [*EVENTS, *OTHERS], ids=lambda event: type(event).__name__)
def test_event_comes_off_the_wire_as_it_went_on(event):
    name, payload = describe(event)
    assert read_event(name, payload | {"at_ms": 1.5}) == event


def test_board_follows_an_agent_from_phase_to_phase():
    board = Board()
    seen = []
    for event in (
        STARTED,
        AgentStarted("refiner", "refiner+judger"),
        AgentPhase("refiner", Phase.THINKING),
        AgentThought("refiner", 4),
    ):
        board.note(event)
        seen.append((board.rows["refiner"].state, board.rows["refiner"].latent_steps))
    assert seen == [(WAITS, 0), (Phase.QUEUED, 0), (Phase.THINKING, 0), (Phase.THINKING, 4)]
    assert board.rows["judger"].state == WAITS


def test_board_sums_what_stages_hand_over():
    board = Board()
    finished = EVENTS[-2]
    trace = finished.trace.model_copy(update={"bytes_out": 2**20})
    for _ in range(2):
        board.note(replace(finished, trace=trace))
    assert board.num_bytes == 2 * 2**20


def test_board_tells_of_agents_that_are_given_up():
    board = Board()
    board.note(StageGivenUp("math", ("math",), "out of memory"))
    assert board.rows["math"].state == FAILED
    assert board.notices == ["going on without math: out of memory"]


def test_agents_of_a_stage_that_is_retried_start_anew():
    board = Board()
    for event in (*EVENTS[:7], StageRetried("refiner+judger", 2, "lost"), STARTED):
        board.note(event)
    assert (board.rows["judger"].state, board.rows["judger"].trace) == (WAITS, None)


def test_table_shows_every_agent_and_stays_when_the_run_is_over():
    screen = StringIO()
    view = LiveView(Console(file=screen, force_terminal=True, width=100))
    for event in EVENTS:
        view.note(event)
    view.stop()
    view.stop()
    assert "judger" in screen.getvalue()
    assert DONE in screen.getvalue()


def test_nothing_turns_in_a_table_that_stays():
    screen = StringIO()
    view = LiveView(Console(file=screen, force_terminal=True, width=100))
    view.note(AgentPhase("judger", Phase.SPEAKING))
    view.stop()
    drawn = [line for line in screen.getvalue().splitlines() if "judger" in line]
    assert drawn[-1].isascii()


def test_plain_lines_tell_of_what_has_ended():
    lines: list[str] = []
    view = PlainView(lines.append)
    for event in (*EVENTS, *OTHERS):
        view.note(event)
    assert lines == [
        "judger: 5 prompt tokens, 2 tokens written, 1 ms, on base",
        "critic begins again (attempt 2): a replica was lost",
        "going on without math: out of memory",
        "sum speaks for math; pipeline auto.math answers.",
        'calculator is called: {"expression": "6*7"}',
        "calculator answered: 42",
    ]


def test_result_is_summed_up_in_a_line():
    assert isinstance(EVENTS[-1], AnswerDone)
    assert describe_result(RESULT) == (
        "hierarchical, latent: 2 ms; 5 prompt tokens, 0 latent steps, 2 tokens written; "
        "0.0 MiB of memory handed over in 2 hops"
    )


def test_new_lines_tabs_and_words_of_all_languages_are_harmless():
    assert harmless("a\n\tZo\u00eb \u4f60\u597d") == "a\n\tZo\u00eb \u4f60\u597d"


@pytest.mark.parametrize("char", ["\x1b", "\x07", "\r", "\x08", "\x7f", "\x9b", "\x00"])
def test_what_steers_a_terminal_is_shown_as_a_replacement(char):
    assert harmless(f"a{char}b") == "a\ufffdb"
