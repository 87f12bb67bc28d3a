"""Reads server-sent events as strictly as a browser."""

import json
from typing import Any, NamedTuple


class Message(NamedTuple):
    name: str
    content: dict[str, Any]


def parse_events(body: str) -> list[Message]:
    """All messages of a whole body; fails for anything that is not ``event:``, ``data:``, blank."""
    assert body.endswith("\n\n"), "the last message is not ended by an empty line"
    return [parse_event(block) for block in body.removesuffix("\n\n").split("\n\n")]


def parse_event(block: str) -> Message:
    event, data = block.split("\n")
    assert event.startswith("event: "), block
    assert data.startswith("data: "), block
    return Message(event.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
