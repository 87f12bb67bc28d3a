"""Fenced blocks of a page of Markdown, and the commands in those of a shell."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str


def blocks_of(path: Path) -> Iterator[Block]:
    page = path.read_text()
    for found in FENCE.finditer(page):
        yield Block(path.name, page.count("\n", 0, found.start()) + 1, found[1], found[2])


def commands_of(block: Block) -> list[str]:
    """One string per command, comments left out; a command may go over several lines."""
    commands: list[str] = []
    begun = ""
    for line in block.text.splitlines(keepends=True):
        begun += line
        if not begun.rstrip().endswith("\\") and _is_whole(begun):
            commands.append(begun.strip())
            begun = ""
    assert not begun, f"{block.page}:{block.line}: a quote is not closed"
    return [re.sub(r"\s+#.*$", "", command) for command in commands if command]


def _is_whole(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True
