"""The rooms of docs/architecture.md, and who may look into whom: read from every file's imports.

A room within another has rules of its own, and those of the other do not hold there.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = {"benchmarks", "examples", "tests", "tools"}
FORBIDDEN = {
    "latentmas_core": {"ray", "starlette", "fastapi", "uvicorn", "deployments", "cluster"}
    | PROGRAMS,
    "cluster": {"latentmas_core", "deployments"} | PROGRAMS,
    "deployments": PROGRAMS,
    "benchmarks": {"ray", "deployments", "cluster", "tests"},
    "benchmarks/serving": {"tests"},  # it measures deployments, so it may look at them
    "examples": {"deployments", "tests"},
    "tools": PROGRAMS - {"tools"},
}


def imported_packages(source: str) -> Iterator[str]:
    """Top-level names of all imports, also of those inside functions and type-checking blocks."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def private_parts_of_ray(source: str) -> list[str]:
    """What is imported from Ray by a name with an underscore, which it may change at any time."""
    names = [
        name
        for node in ast.walk(ast.parse(source))
        for name in (
            [f"{node.module}.{alias.name}" for alias in node.names]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    ]
    return [name for name in names if name.startswith("ray.") and "._" in name]


def room_of(path: Path) -> str:
    """The innermost room that a file lies in."""
    rooms = [room for room in FORBIDDEN if path.is_relative_to(ROOT / room)]
    return max(rooms, key=len)


@pytest.mark.parametrize("room", FORBIDDEN)
def test_room_imports_only_what_it_may(room: str) -> None:
    offences = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / room).rglob("*.py"))
        if room_of(path) == room
        for name in imported_packages(path.read_text())
        if name in FORBIDDEN[room]
    ]
    assert offences == []


def test_only_its_own_programs_reach_the_service_through_the_serving_benchmarks() -> None:
    users = {
        path.relative_to(ROOT / "benchmarks").as_posix()
        for path in (ROOT / "benchmarks").rglob("*.py")
        if room_of(path) == "benchmarks" and "benchmarks.serving" in path.read_text()
    }
    assert users == {"connections.py", "handoff.py", "serve_load.py"}


def test_only_the_transport_knows_what_ray_does_not_promise() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for room in ("latentmas_core", "deployments", "cluster")
        for path in (ROOT / room).rglob("*.py")
        if private_parts_of_ray(path.read_text())
    }
    # Ray has no public name for the keys that it hands to a policy; only type checkers import it.
    assert users == {"deployments/transport.py", "cluster/autoscaling.py"}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_room_is_there_to_be_checked(room: str) -> None:
    assert any((ROOT / room).glob("*.py"))


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
