"""What a process imports before it does anything, read from the files: seconds, if it is much."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def modules_at_start(path: Path) -> set[str]:
    """What the statements of a file import, without those in functions and type-checking blocks."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def path_of(module: str) -> Path | None:
    """The file of a module, if it is one of ours."""
    path = ROOT / module.replace(".", "/")
    found = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    return found[0] if found else None


def all_at_start(module: str) -> set[str]:
    """That, over all modules of ours that it leads to, and the packages they are in."""
    reached: set[str] = set()
    left = {module}
    while left:
        name = left.pop()
        reached.add(name)
        path = path_of(name)
        if path is not None:
            left |= (modules_at_start(path) | {name.rpartition(".")[0]}) - reached - {""}
    return reached


@pytest.mark.parametrize("module", ["deployments.app", "deployments.ingress"])
def test_those_who_run_no_model_do_without_transformers(module: str) -> None:
    packages = {name.partition(".")[0] for name in all_at_start(module)}
    assert "pydantic" in packages
    assert packages.isdisjoint({"transformers", "accelerate", "peft"})


def test_an_engine_needs_it() -> None:
    assert "transformers" in all_at_start("latentmas_core.engine.engine")
