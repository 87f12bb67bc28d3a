"""The rooms of docs/architecture.md, and who may look into whom: read from every file's imports."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = {"benchmarks", "examples", "tests"}
FORBIDDEN = {
    "latentmas_core": {"ray", "starlette", "fastapi", "uvicorn", "deployments", "cluster"}
    | PROGRAMS,
    "cluster": {"latentmas_core", "deployments"} | PROGRAMS,
    "deployments": PROGRAMS,
    "benchmarks": {"deployments", "tests"},
    "examples": {"deployments", "tests"},
}


def imported_packages(source: str) -> Iterator[str]:
    """Top-level names of all imports, also of those inside functions and type-checking blocks."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_imports_only_what_it_may(package: str) -> None:
    offences = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in imported_packages(path.read_text())
        if name in FORBIDDEN[package]
    ]
    assert offences == []


@pytest.mark.parametrize("package", ["latentmas_core", "cluster", "deployments"])
def test_package_is_there_to_be_checked(package: str) -> None:
    assert (ROOT / package / "__init__.py").is_file()


@pytest.mark.parametrize(
    "source",
    [
        "import ray",
        "import ray.serve as serve",
        "from ray import serve",
        "def f():\n    from ray.util import state",
        "if TYPE_CHECKING:\n    import ray",
    ],
)
def test_import_is_seen_wherever_it_stands(source: str) -> None:
    assert list(imported_packages(source)) == ["ray"]


def test_relative_import_stays_at_home() -> None:
    assert list(imported_packages("from . import ray\nfrom .ray import x")) == []
