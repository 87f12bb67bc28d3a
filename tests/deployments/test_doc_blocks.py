"""Each command and block of README and quick start is run, or listed here with a reason."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import Block, blocks_of, commands_of
from tests.scripted_model import make_scripted_model

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs/quickstart.md")
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL = [
    (block, command)
    for block in BLOCKS
    if block.language == "bash"
    for command in commands_of(block)
]
URL = "http://127.0.0.1:8000"

MAKE = {
    "make serve": "installs and runs until it is ended; tests/test_launch.py runs what it starts",
    "make test": "is what runs this test",
    'make ask Q="Name three primary colors."': "asks port 8000; test_make_ask.py asks another",
}
# tests/examples/test_examples.py takes these two blocks from README itself.
RUN_BY_TEST_EXAMPLES = {("README.md", "python")}

# The same command on both pages runs once.
RUN_HERE = [
    pytest.param(command, id=f"{block.page}:{block.line}:{command[:30]}")
    for command, block in {command: block for block, command in SHELL}.items()
    if command not in MAKE
]
PYTHON = [
    pytest.param(block, id=f"{block.page}:{block.line}")
    for block in BLOCKS
    if block.language == "python" and (block.page, block.language) not in RUN_BY_TEST_EXAMPLES
]


def test_every_block_is_of_a_language_that_is_run():
    assert [block for block in BLOCKS if block.language not in ("bash", "python")] == []


def test_what_is_not_run_here_is_in_the_pages_and_in_the_makefile():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(MAKE) == {command for _, command in SHELL if command.startswith("make ")}
    assert {command.split()[1] for command in MAKE} <= targets


@pytest.fixture(scope="module")
def service(deploy, tmp_path_factory):
    model = make_scripted_model(tmp_path_factory.mktemp("scripted") / "scripted-1b")
    agents = ["planner", "critic", "refiner", "judger", "medical", "math", "coder"]
    engine = {
        "model_name": str(model),
        "device": "cpu",
        "dtype": "float32",
        "kv_cache_bytes": 2**26,
    }
    return deploy(
        {"engine": engine, "latent_steps": 2, "groups": [{"name": "all", "agents": agents}]}
    )


@pytest.mark.serve
@pytest.mark.own_cluster
@pytest.mark.slow
@pytest.mark.usefixtures("embedded_model_path")
@pytest.mark.parametrize("command", RUN_HERE)
def test_a_command_runs(service, command):
    here = command.replace(URL, service.url).replace(
        ".venv/bin/", f"{Path(sys.executable).parent}/"
    )
    # Of a service the exit status of curl tells nothing, unless it is asked to.
    here = re.sub(r"^curl ", "curl --silent --show-error --fail ", here)
    printed = run(["bash", "-c", here])
    assert printed.strip() or command.endswith(("chat", "/readyz"))


@pytest.mark.serve
@pytest.mark.own_cluster
@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON)
def test_a_block_of_python_runs(service, block: Block):
    assert run([sys.executable, "-c", block.text.replace(URL, service.url)]).strip()


def run(command: list[str]) -> str:
    finished = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr + finished.stdout
    return finished.stdout
