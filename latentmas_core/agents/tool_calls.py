"""Calls of tools in the text of an answer, as Hermes and Qwen write them:

    <tool_call>
    {"name": "weather", "arguments": {"city": "Paris"}}
    </tool_call>

Knows text alone. What is no such call stays text.
"""

import json
import re
from collections.abc import Collection
from typing import NamedTuple

from pydantic import ValidationError

from latentmas_core.chat import ToolCall

BEGIN, END = "<tool_call>", "</tool_call>"

# A call at the very end may lack its last mark: some models end their turn instead.
_CALL = re.compile(rf"\s*{BEGIN}\s*(.*?)\s*(?:{END}|\Z)", re.DOTALL)


class Spoken(NamedTuple):
    """An answer: what it says, and which tools it wants to be run."""

    content: str
    calls: tuple[ToolCall, ...] = ()


def parse_tool_calls(text: str, known: Collection[str]) -> Spoken:
    """Take the calls out of ``text``.

    If any block of it is no call, or one of a tool that is not ``known``, all of it is content:
    half an answer would mislead.
    """
    begin = text.find(BEGIN)
    if begin < 0:
        return Spoken(text)
    matches = list(_CALL.finditer(text))
    calls = [_call(match[1]) for match in matches]
    if any(call is None or call.name not in known for call in calls):
        return Spoken(text)
    return Spoken(_CALL.sub("", text), tuple(call for call in calls if call is not None))


def _call(text: str) -> ToolCall | None:
    try:
        values = json.loads(text)
        return ToolCall(name=values["name"], arguments=values.get("arguments") or {})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ValidationError):
        return None


class HeldBack:
    """Text as it comes, up to where a call begins or may begin; the rest waits for the end."""

    def __init__(self) -> None:
        self._text = ""
        self._num_given = 0

    def add(self, piece: str) -> str:
        """What can be shown now."""
        self._text += piece
        return self._give(self._num_certain())

    def rest(self, content: str) -> str:
        """At the end: what of ``content``, the answer without its calls, was not shown yet."""
        return content[self._num_given :]

    def _give(self, end: int) -> str:
        piece = self._text[self._num_given : end]
        self._num_given = max(self._num_given, end)
        return piece

    def _num_certain(self) -> int:
        begin = self._text.find(BEGIN)
        if begin < 0:
            lengths = range(min(len(BEGIN) - 1, len(self._text)), 0, -1)
            held = next((n for n in lengths if BEGIN.startswith(self._text[-n:])), 0)
            begin = len(self._text) - held
        # Blanks in front of a call belong to it.
        return len(self._text[:begin].rstrip())
