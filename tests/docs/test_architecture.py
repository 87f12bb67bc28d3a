"""docs/architecture.md has a place for every module, and names none that is gone."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("latentmas_core", "deployments", "cluster", "tools")
NAMED = set(re.findall(r"`([\w/]+(?:\.\w+|/))`", (ROOT / "docs/architecture.md").read_text()))
MODULES = [
    path.relative_to(ROOT).as_posix()
    for room in ROOMS
    for path in sorted((ROOT / room).rglob("*.py"))
    if not path.name.startswith("__")
]


def is_named(module: str) -> bool:
    """By its name, or by the folder that it lies in."""
    folders = {f"{folder.as_posix()}/" for folder in Path(module).parents}
    return any(
        module == name or module.endswith(f"/{name}") or {name, f"latentmas_core/{name}"} & folders
        for name in NAMED
    )


def test_every_module_has_a_place() -> None:
    assert [module for module in MODULES if not is_named(module)] == []


def test_every_module_that_is_named_is_there() -> None:
    modules = [f"/{module}" for module in [*MODULES, "tests/test_imports.py"]]
    names = [name for name in NAMED if name.endswith(".py")]
    assert [n for n in names if not any(module.endswith(f"/{n}") for module in modules)] == []
