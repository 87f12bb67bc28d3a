"""What docs/troubleshooting.md quotes is what the sources say."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
QUOTED = re.findall(r"^\| `(.+?)`", PAGE, re.MULTILINE)


def texts_of(source: str) -> str:
    """All its strings, those in several pieces as one; what f-strings put in is left out."""
    return "\n".join(
        "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        if isinstance(node, ast.JoinedStr)
        else str(node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.JoinedStr | ast.Constant)
    )


@pytest.fixture(scope="module")
def texts() -> str:
    folders = ("latentmas_core", "deployments", "cluster")
    return "\n".join(
        texts_of(path.read_text()) for name in folders for path in (ROOT / name).rglob("*.py")
    )


def test_messages_are_quoted():
    assert len(QUOTED) > 10


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_one_of_the_code(texts, message):
    assert message in texts
