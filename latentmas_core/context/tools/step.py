"""What an answer means for the loop: which calls are run, which are not, and what was said."""

import json
from collections.abc import Collection
from typing import NamedTuple

from latentmas_core.agents.tool_calls import BEGIN, END, parse_tool_calls
from latentmas_core.chat import ToolCall


class Step(NamedTuple):
    """``content`` is what a reader sees of the answer. With nothing ``to_run`` it is the last.

    ``refused`` are the calls that are not run, each with the reason.
    """

    content: str
    to_run: tuple[ToolCall, ...] = ()
    refused: tuple[tuple[ToolCall, str], ...] = ()


class Known(NamedTuple):
    """The names of tools that an answer may call: those run here, and those of the caller."""

    ours: Collection[str]
    theirs: Collection[str]


def step_of(text: str, known: Known, *, max_calls: int, is_last: bool) -> Step:
    """An answer that calls a tool of the caller goes to the caller, who runs it and asks again.

    Calls of ours in the same answer are refused then, since the caller could not pass on what came
    of them; so are those of the last round, and those beyond ``max_calls``.
    """
    spoken = parse_tool_calls(text, {*known.ours, *known.theirs})
    theirs = tuple(call for call in spoken.calls if call.name in known.theirs)
    ours = tuple(call for call in spoken.calls if call.name in known.ours)
    if not ours:
        return Step(text)
    if theirs:
        content = "\n".join(filter(None, [spoken.content.rstrip(), *map(_written, theirs)]))
        return Step(content, refused=_all(ours, "not run: the answer calls tools of the caller."))
    content = spoken.content if spoken.content.strip() else ""
    if is_last:
        return Step(content.rstrip(), refused=_all(ours, "not run: no round of calls was left."))
    reason = f"not run: an answer may call {max_calls} tools. Call it in the next one."
    return Step(content, ours[:max_calls], _all(ours[max_calls:], reason))


def _all(calls: tuple[ToolCall, ...], reason: str) -> tuple[tuple[ToolCall, str], ...]:
    return tuple((call, reason) for call in calls)


def _written(call: ToolCall) -> str:
    """As the model writes calls."""
    values = {"name": call.name, "arguments": call.arguments}
    return f"{BEGIN}\n{json.dumps(values, ensure_ascii=False)}\n{END}"
