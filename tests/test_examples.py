"""What README and examples/ promise runs as it is written there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("embedded_model_path")]


def run_python(*arguments: str) -> str:
    finished = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_quickstart_answers_its_questions():
    printed = run_python("examples/quickstart.py")
    assert "Answer: The capital of France is Paris." in printed
    assert "[medical finished]" in printed
    assert printed.count("The capital of") >= 4


def test_the_python_of_the_readme_runs():
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    printed = run_python("-c", block)
    assert "The capital of France is Paris." in printed
    assert "AnswerDone" in printed
