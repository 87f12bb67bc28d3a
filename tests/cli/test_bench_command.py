"""`latentmas bench` is the repository's program: its options, its exit status, its place."""

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]


def run(*arguments: str, cwd: Path = REPO) -> "subprocess.CompletedProcess[str]":
    program = str(Path(sys.executable).with_name("latentmas"))
    command = [program, "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def test_quality_takes_the_options_of_the_program() -> None:
    told = run("quality", "--help")
    assert told.returncode == 0, told.stderr
    assert "python -m benchmarks.quality" in told.stdout
    assert "--sweep" in told.stdout


def test_what_the_program_refuses_is_refused_with_its_status() -> None:
    told = run("quality", "--n", "0")
    assert told.returncode == 2
    assert "must be at least 1" in told.stderr


def test_compare_names_the_run_that_is_not_there(tmp_path: Path) -> None:
    told = run("compare", str(tmp_path / "first"), str(tmp_path / "second"))
    assert told.returncode == 2
    assert str(tmp_path / "first") in told.stderr


def test_outside_of_a_clone_it_says_where_to_go(tmp_path: Path) -> None:
    told = run("quality", cwd=tmp_path)
    assert told.returncode == 1
    assert told.stderr.startswith(f"{tmp_path} holds no benchmarks/quality")
    assert "Clone it" in told.stderr
