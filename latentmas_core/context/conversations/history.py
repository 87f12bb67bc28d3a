"""Which turns a new question is told of: the latest, as many whole ones as the budget has room for.

Knows no tokenizer: whoever asks says how tokens are counted.
"""

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from latentmas_core.chat import ChatMessage
from latentmas_core.context.conversations.records import Turn

CountTokens = Callable[[str], int]

MESSAGE_TOKENS = 4  # what chat templates put around a message, about
BYTES_PER_TOKEN = 3  # of UTF-8; English has about 4, code and other scripts fewer


class FittedHistory(NamedTuple):
    """``messages`` are in the order in which they were said; ``num_left_out`` counts turns."""

    messages: tuple[ChatMessage, ...]
    num_left_out: int


def fit_history(
    turns: Sequence[Turn],
    budget_tokens: int,
    count_tokens: CountTokens,
    *,
    system_prompt: str | None = None,
) -> FittedHistory:
    """The latest of ``turns``, oldest first, that fit the budget together with the system prompt.

    The system prompt is kept whatever it takes, so it comes off the budget first; it is told on its
    own and is no part of the messages. The first turn that does not fit ends it: there are no gaps.
    """
    left = budget_tokens
    if system_prompt is not None:
        left -= MESSAGE_TOKENS + count_tokens(system_prompt)
    kept: list[tuple[ChatMessage, ...]] = []
    for turn in reversed(turns):
        messages = turn.as_messages()
        left -= sum(_num_tokens(message, count_tokens) for message in messages)
        if left < 0:
            break
        kept.append(messages)
    in_order = tuple(message for messages in reversed(kept) for message in messages)
    return FittedHistory(in_order, len(turns) - len(kept))


def estimated_tokens(text: str) -> int:
    """Where no tokenizer is at hand: rather too many than too few."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def _num_tokens(message: ChatMessage, count_tokens: CountTokens) -> int:
    calls = [call.as_template_input() for call in message.tool_calls]
    told = message.content + (json.dumps(calls, ensure_ascii=False) if calls else "")
    return MESSAGE_TOKENS + count_tokens(told)
