"""A file of configuration with the command line on top."""

from pathlib import Path

import pytest

from benchmarks.quality.command_line import parsed
from benchmarks.quality.tasks import DATA_FOLDER
from latentmas_core.errors import ConfigError

FILE = """
tasks: [medqa]
n: 100
adapters: {judger: mine}
sweep: {latent_steps: [0, 5]}
limits: {max_tokens: 64, seed: 3}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(FILE)
    return path


def test_the_file_says_everything_that_the_command_line_may_say(file: Path) -> None:
    settings = parsed(["--config", str(file)])
    assert (settings.tasks, settings.n, settings.adapters) == (("medqa",), 100, {"judger": "mine"})
    assert (settings.limits.max_tokens, settings.limits.seed) == (64, 3)
    assert settings.data == DATA_FOLDER
    names = [method.name for method in settings.expanded_methods()]
    assert names == ["single", "text", "latent+latent_steps=0", "latent+latent_steps=5"]


def test_the_command_line_wins_over_the_file(file: Path) -> None:
    settings = parsed(
        ["--config", str(file), "--n", "4", "--max-tokens", "8", "--adapters", "critic=a/b"]
    )
    assert (settings.n, settings.limits.max_tokens, settings.limits.seed) == (4, 8, 3)
    assert settings.adapters == {"critic": "a/b"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tasks: [medqa]\nspeed: 9", "unknown field 'speed'"),
        ("tasks: [medqa]\nlimits: {speed: 9}", "unknown field 'speed'"),
        ("tasks: [medqa]\nlimits: 9", "limits of .* is 9"),
        ("n: many\ntasks: [medqa]", "n got 'many'"),
        ("tasks: []", "tasks got"),
        ("- medqa", "holds no mapping"),
        ("tasks: [", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_by_name(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        parsed(["--config", str(path)])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--tasks", "gsm8k", "--adapters", "judger"],
        ["--tasks", "gsm8k", "--sweep", "latent_steps"],
        ["--tasks", "gsm8k", "--n", "0"],
    ],
)
def test_a_command_line_that_cannot_be_read_ends_the_program(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(arguments)
