"""What README and examples/ promise runs as it is written there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lora.adapters import make_adapter

ROOT = Path(__file__).parents[2]

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


def test_chat_is_the_program_and_prints_one_result_as_json():
    arguments = ("--prompt", "What is AI?", "--output-json", "--max-tokens", "8")
    result = json.loads(run_python("examples/chat.py", *arguments, "--latent-steps", "2"))
    assert result["final_answer"]
    assert [agent["latent_steps"] for agent in result["agents"]] == [2, 2, 2, 0]


def test_the_physician_says_that_it_is_on_the_base():
    arguments = ("--question", "Which organ makes insulin?", "--max-tokens", "8")
    printed = run_python("examples/medical_qa.py", *arguments, "--latent-steps", "2")
    assert "No medical adapter for embedded:" in printed
    assert "medical: clinical expertise, on base" in printed


def test_pipelines_of_ones_own_run():
    arguments = ("--max-tokens", "8", "--latent-steps", "2")
    printed = run_python("examples/custom_pipeline.py", *arguments)
    assert "economist (economist) <- for, against: speaks" in printed
    assert "critic (critic) <- first_opinion, second_opinion: 2 latent steps" in printed


def test_adapters_in_one_batch_give_answers_of_their_own():
    arguments = ("--adapters", "3", "--max-tokens", "10", "--latent-steps", "2")
    printed = run_python("examples/many_adapters.py", *arguments)
    assert re.findall(r"^ *(\w+): ", printed, re.MULTILINE) == [
        "adapter0_rank4",
        "adapter1_rank8",
        "adapter2_rank16",
        "base",
    ]
    assert "4 different answers of 4 rows" in printed
    assert "rows answer as they do alone" in printed


def test_sample_questions_have_answers_and_domains():
    rows = json.loads((ROOT / "examples" / "data" / "sample_data.json").read_text())
    assert len(rows) >= 20
    assert len({row["id"] for row in rows}) == len({row["question"] for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == {"id", "domain", "question", "answer"}
        assert all(row.values()), row["id"]
    assert {row["domain"] for row in rows} == {"medical", "math", "code", "reasoning", "general"}


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
