"""Dockerfile and workflows are clean to the linters made for them, which do find what is wrong."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"


def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A linter out of the environment that the tests run in."""
    path = shutil.which(program, path=str(Path(sys.executable).parent))
    assert path is not None, f"{program} is not installed: make .venv/.installed"
    return subprocess.run(
        [path, "--no-color", *arguments], capture_output=True, text=True, timeout=60
    )


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    return run("hadolint", path)


def actionlint(path: Path) -> subprocess.CompletedProcess[str]:
    # Without the linters of scripts, which one machine has and another has not.
    return run("actionlint", "-shellcheck=", "-pyflakes=", path)


def seeded(source: Path, right: str, wrong: str, folder: Path) -> Path:
    """A copy with one thing in it replaced."""
    text = source.read_text()
    assert right in text, right
    copy = folder / source.name
    copy.write_text(text.replace(right, wrong, 1))
    return copy


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    found = hadolint(ROOT / "Dockerfile")
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ("python:3.11-slim-bookworm", "python:latest", "DL3007"),
        ("pip install --no-cache-dir", "pip install", "DL3042"),
        ("WORKDIR /source", "WORKDIR source", "DL3000"),
        ("RUN groupadd", "RUN cd /tmp && groupadd", "DL3003"),
        ('CMD ["bash", "/etc/latentmas/start.sh"]', "CMD bash start.sh", "DL3025"),
        ("EXPOSE 8000", "EXPOSE 80000", "DL3011"),
    ],
)
def test_hadolint_finds_a_seeded_mistake(right: str, wrong: str, rule: str, tmp_path: Path) -> None:
    found = hadolint(seeded(ROOT / "Dockerfile", right, wrong, tmp_path))
    assert found.returncode == 1, found.stderr
    assert rule in found.stdout


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.yml")), ids=lambda path: path.name)
def test_actionlint_finds_nothing_in_the_workflows(path: Path) -> None:
    found = actionlint(path)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("matrix.suffix", "matrix.sufix", 'property "sufix" is not defined'),
        ("steps.names.outputs", "steps.name.outputs", 'property "name" is not defined'),
        ("needs: image", "needs: picture", '"picture"'),
        ("runs-on: ubuntu-24.04", "runs-on: ubuntu-24.4", '"ubuntu-24.4" is unknown'),
        ("timeout-minutes:", "timeout-minute:", '"timeout-minute"'),
        ("sbom: true", "sbomb: true", 'input "sbomb" is not defined'),
    ],
)
def test_actionlint_finds_a_seeded_mistake(
    right: str, wrong: str, said: str, tmp_path: Path
) -> None:
    found = actionlint(seeded(WORKFLOWS / "cd-docker.yml", right, wrong, tmp_path))
    assert found.returncode == 1, found.stderr
    assert said in found.stdout
