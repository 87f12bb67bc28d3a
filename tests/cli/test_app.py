"""The program `latentmas`: commands from entry points, and a sentence where an extra is missing."""

import subprocess
import sys
from pathlib import Path

import pytest

from latentmas_core.cli import app as cli
from latentmas_core.cli.app import extra_of

REPO = Path(__file__).parents[2]


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO, timeout=120)


def test_help_lists_the_commands_and_needs_neither_ray_nor_torch():
    program = (
        "import sys; sys.modules['ray'] = sys.modules['torch'] = None;"
        "sys.argv = ['latentmas', '--help'];"
        "from latentmas_core.cli.app import main; main()"
    )
    result = run(sys.executable, "-c", program)
    assert result.returncode == 0, result.stderr
    assert "validate" in result.stdout


def test_module_is_the_same_program():
    result = run(sys.executable, "-m", "latentmas_core.cli", "validate", "--help")
    assert result.returncode == 0, result.stderr
    assert "--node" in result.stdout


def test_installed_program_validates_the_shipped_config():
    program = Path(sys.executable).with_name("latentmas")
    result = run(str(program), "validate", "serve_config.yaml", "--node", "cpus=2")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("serve_config.yaml is valid.")
    assert result.stderr == ""


def test_unknown_command_is_wrong_usage():
    result = run(sys.executable, "-m", "latentmas_core.cli", "valdate")
    assert result.returncode == 2
    assert "valdate" in result.stderr


def test_missing_extra_is_a_sentence_with_the_remedy():
    program = (
        "import sys; sys.modules['ray'] = None;"
        "sys.argv = ['latentmas', 'validate', 'serve_config.yaml'];"
        "from latentmas_core.cli.app import main; main()"
    )
    result = run(sys.executable, "-c", program)
    assert result.returncode == 1
    assert result.stderr.strip() == (
        "This needs ray, which is not installed. Install it: pip install 'latentmas[serve]'"
    )


def test_missing_module_that_no_extra_brings_is_not_hidden(monkeypatch):
    def broken() -> None:
        raise ModuleNotFoundError("No module named 'no_such_module'", name="no_such_module")

    monkeypatch.setattr(cli, "build_app", lambda: broken)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        cli.main()


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("ray", "serve"),
        ("bitsandbytes", "quant"),
        ("torch", None),
        ("no_such_module", None),
        ("", None),
    ],
)
def test_extra_that_brings_a_module_is_read_from_the_package(module, extra):
    assert extra_of(module) == extra
