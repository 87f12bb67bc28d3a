"""Runs one call of a tool: whatever the tool does, a text for the model comes of it, in time."""

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from latentmas_core.context.tools.tool import Tool
from latentmas_core.errors import ToolError

# How long a cancelled tool may take to clean up before it is left to itself.
GRACE_S = 1.0

logger = logging.getLogger(__name__)


class ToolResult(NamedTuple):
    """What the model is told."""

    text: str
    is_error: bool = False


async def run_tool(
    tool: Tool, arguments: Mapping[str, Any], *, timeout_s: float, max_chars: int
) -> ToolResult:
    """Never raises: a tool that raises or takes longer than ``timeout_s`` is a result that says so.
    ``max_chars`` of what it says are kept. Cancelling this cancels the tool."""
    running = asyncio.create_task(_answer(tool, arguments, max_chars))
    try:
        await asyncio.wait([running], timeout=timeout_s)
    finally:
        has_ended = running.done()
        if not has_ended:
            await _end(running, tool)
    if not has_ended:
        return ToolResult(f"{tool.name} did not end within {timeout_s:g} s.", is_error=True)
    if running.cancelled():
        return ToolResult(f"{tool.name} was cancelled from within.", is_error=True)
    return running.result()


async def _end(running: "asyncio.Task[ToolResult]", tool: Tool) -> None:
    running.cancel()
    await asyncio.wait([running], timeout=GRACE_S)
    if not running.done():
        logger.warning("tool %s goes on though it was cancelled; it is left to itself", tool.name)


async def _answer(tool: Tool, arguments: Mapping[str, Any], max_chars: int) -> ToolResult:
    try:
        return ToolResult(_cut(await tool.call(arguments), max_chars))
    except ToolError as error:
        return ToolResult(_cut(error.message, max_chars), is_error=True)
    except (Exception, SystemExit) as error:
        # What it says may be meant for the log alone: addresses, passwords, paths.
        logger.warning("tool %s failed", tool.name, exc_info=error)
        return ToolResult(f"{tool.name} failed with {type(error).__name__}.", is_error=True)


def _cut(value: object, max_chars: int) -> str:
    """Texts as they are, all else as JSON; written only as far as it is read."""
    pieces = [value] if isinstance(value, str) else _JSON.iterencode(value)
    kept, size = [], 0
    for piece in pieces:
        kept.append(piece[: max_chars + 1])
        size += len(piece)
        if size > max_chars:
            break
    # Half a surrogate pair is nothing that a tokenizer can read.
    text = "".join(kept)[:max_chars].encode(errors="replace").decode()
    return f"{text}\n[only the first {max_chars} characters]" if size > max_chars else text


def _as_json(value: object) -> object:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


_JSON = json.JSONEncoder(ensure_ascii=False, default=_as_json)
