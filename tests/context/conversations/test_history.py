"""Which turns a question is told of. Tokens are words here."""

import pytest

from latentmas_core.chat import ChatMessage, ToolCall
from latentmas_core.context.conversations.history import (
    MESSAGE_TOKENS,
    estimated_tokens,
    fit_history,
)
from tests.context.conversations.answers import make_turn, said

TURNS = [make_turn(f"question {i}", f"answer {i}") for i in range(4)]
TURN_TOKENS = 2 * (MESSAGE_TOKENS + 2)


def count_words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(
    ("budget", "num_kept"),
    [
        (0, 0),
        (TURN_TOKENS - 1, 0),
        (TURN_TOKENS, 1),
        (3 * TURN_TOKENS - 1, 2),
        (4 * TURN_TOKENS, 4),
        (10**6, 4),
    ],
)
def test_as_many_whole_turns_are_kept_as_fit_the_latest_in_their_order(budget, num_kept):
    fitted = fit_history(TURNS, budget, count_words)
    kept = TURNS[4 - num_kept :]
    assert said(fitted.messages) == [text for turn in kept for text in (turn.question, turn.answer)]
    assert [message.role for message in fitted.messages] == ["user", "assistant"] * num_kept
    assert fitted.num_left_out == 4 - num_kept


def test_system_prompt_takes_its_part_of_the_budget():
    budget = 2 * TURN_TOKENS
    assert fit_history(TURNS, budget, count_words).num_left_out == 2
    assert fit_history(TURNS, budget, count_words, system_prompt="Be brief.").num_left_out == 3
    enough = budget + MESSAGE_TOKENS + 2
    assert fit_history(TURNS, enough, count_words, system_prompt="Be brief.").num_left_out == 2


def test_system_prompt_beyond_the_budget_leaves_no_room_for_turns():
    fitted = fit_history(TURNS, 20, count_words, system_prompt="word " * 50)
    assert fitted == ((), 4)


def test_a_long_turn_ends_the_history_so_that_there_are_no_gaps():
    turns = [TURNS[0], make_turn("long", "word " * 100), TURNS[2]]
    fitted = fit_history(turns, 3 * TURN_TOKENS, count_words)
    assert said(fitted.messages) == ["question 2", "answer 2"]
    assert fitted.num_left_out == 2


def test_calls_of_tools_stand_between_question_and_answer_and_count():
    messages = (
        ChatMessage(role="assistant", tool_calls=(ToolCall(name="add", arguments={"a": 1}),)),
        ChatMessage(role="tool", content="it is 2"),
    )
    turn = make_turn("question 0", "answer 0", messages=messages)
    assert fit_history([turn], 100, count_words).messages[1:3] == messages
    only_texts = 4 * MESSAGE_TOKENS + 2 + 3 + 2
    assert fit_history([turn], only_texts, count_words).num_left_out == 1


def test_no_turns_make_no_history():
    assert fit_history([], 100, count_words) == ((), 0)


@pytest.mark.parametrize(("text", "num_tokens"), [("", 0), ("a", 1), ("four", 2), ("你好", 2)])
def test_estimate_counts_three_bytes_as_a_token_and_rounds_up(text, num_tokens):
    assert estimated_tokens(text) == num_tokens
