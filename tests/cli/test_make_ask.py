"""``make ask``: the question reaches the service as it was typed, and failures say what to do."""

import os
import subprocess
import sys
from pathlib import Path

from tests.deployments.keys import ALICE
from tests.deployments.page.scripted import ANSWER

ROOT = Path(__file__).parents[2]
AWKWARD = """--help "Why" isn't `it` $HOME, $(Q), $(error x) or \\n? # Because"""


def make_ask(*variables: str, stderr: int = subprocess.PIPE) -> "subprocess.CompletedProcess[str]":
    """With the programs of this environment, which is not installed once more."""
    installed = ("-o", ".venv/.installed", f"BIN={Path(sys.executable).parent}")
    return subprocess.run(
        ["make", "--no-print-directory", "ask", *installed, *variables],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=120,
    )


def test_question_is_asked_as_it_was_typed(service):
    made = make_ask(f"ENDPOINT={service.url}", f"Q={AWKWARD}")
    assert (made.returncode, made.stdout) == (0, f"{ANSWER}\n"), made.stderr
    asked = service.reasoner.requests[-1]
    assert (asked.question, asked.temperature) == (AWKWARD, 0)
    assert [name in made.stderr for name in ("planner", "critic", "refiner", "judger")] == [
        True
    ] * 4


def test_answer_has_a_line_of_its_own_where_both_outputs_go_to_one_file(service):
    made = make_ask(f"ENDPOINT={service.url}", "Q=Why?", stderr=subprocess.STDOUT)
    assert f"\n{ANSWER}\njudger: " in made.stdout


def test_key_is_that_of_the_environment(locked_service, monkeypatch):
    monkeypatch.setenv("LATENTMAS_API_KEY", ALICE)
    made = make_ask(f"ENDPOINT={locked_service.url}", "Q=Why?")
    assert made.stdout == f"{ANSWER}\n"
    assert ALICE not in made.stderr


def test_nobody_who_answers_is_told_with_what_to_start():
    made = make_ask("ENDPOINT=http://127.0.0.1:9", "Q=Why?")
    assert made.returncode == 2
    assert "nothing answers on http://127.0.0.1:9." in made.stderr
    assert "make serve" in made.stderr


def test_missing_question_is_told_with_an_example():
    made = make_ask()
    assert made.returncode == 2
    assert 'make ask Q="' in made.stderr
