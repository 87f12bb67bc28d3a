"""What README and examples/ promise runs as it is written there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lora.adapters import make_adapter

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


def test_the_lens_shows_every_step_of_those_who_think():
    printed = run_python("examples/lens.py")
    assert printed.count("|h|") == 3 * 6
    assert "The capital of France is Paris." in printed
    assert "steps shown: {'planner': 6, 'critic': 6, 'refiner': 6, 'judger': 0}" in printed


def blocks_of_the_readme():
    """What it shows in Python: the first use, and adapters."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_adapters_of_the_readme_are_used(embedded_model_path, tmp_path):
    _, block = blocks_of_the_readme()
    adapter = make_adapter(tmp_path / "mine", embedded_model_path, rank=4, std=0.01)
    config = adapter / "adapter_config.json"
    name = json.dumps(str(embedded_model_path))
    assert name in config.read_text()
    config.write_text(config.read_text().replace(name, '"HuggingFaceTB/SmolLM2-135M-Instruct"'))
    assert "folder-or-owner/name" in block
    block = block.replace("folder-or-owner/name", str(adapter))
    printed = run_python("-c", f"from latentmas_core import LatentMASSystem\n{block}")
    assert printed.startswith("mine ")


def test_the_python_of_the_readme_runs():
    block, _ = blocks_of_the_readme()
    printed = run_python("-c", block)
    assert "The capital of France is Paris." in printed
    assert "AnswerDone" in printed
