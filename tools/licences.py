"""``python -m tools.licences`` writes docs/licences.md: which licence each dependency says it has.

Everything that the declared dependencies need, as far as it is installed here, in the versions of
constraints.txt.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
UNTOLD = "not told"
# Groups of pyproject.toml that a user of the service never installs.
NOT_SHIPPED = ("dev", "docs")
HEAD = """# Licences of dependencies

Written by `python -m tools.licences` from what the packages themselves say, not by hand. First the
dependencies that are declared, then what these bring along.
"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """docs/licences.md as the installed packages make it."""
    declared = declared_names()
    brought = sorted(needed_by(declared) - declared)
    return "\n".join(
        [HEAD, *_table(sorted(declared)), "", "## Brought along", "", *_table(brought), ""]
    )


def declared_names() -> set[str]:
    """Of pyproject.toml, but for what only developers install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: Mapping[str, list[str]] = project["optional-dependencies"]
    lines = [*project["dependencies"]]
    for extra, more in extras.items():
        if extra not in NOT_SHIPPED:
            lines += more
    return {canonicalize_name(Requirement(line).name) for line in lines}


def needed_by(names: Iterable[str]) -> set[str]:
    """These and, as far as they are installed, all that they need without further extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found or not _is_installed(name):
            continue
        found.add(name)
        requirements = map(Requirement, metadata.requires(name) or ())
        waiting += [
            canonicalize_name(one.name)
            for one in requirements
            if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    return found


def licence_of(name: str) -> str:
    """An expression of SPDX where the package has one, else its own words."""
    told = metadata.metadata(name)
    if expression := _field(told, "License-Expression"):
        return expression
    classes = [one for one in told.get_all("Classifier", []) if one.startswith("License ::")]
    if classes:
        return ", ".join(one.rpartition(" :: ")[2] for one in classes)
    own_words = _field(told, "License").strip()
    return re.split(r"\n", own_words)[0] or UNTOLD


def _field(told: metadata.PackageMetadata, name: str) -> str:
    """Empty where the package does not say."""
    return str(told[name]) if name in told else ""


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _table(names: Iterable[str]) -> Iterator[str]:
    yield "| package | licence |"
    yield "|---|---|"
    for name in names:
        yield f"| {name} | {licence_of(name) if _is_installed(name) else 'not installed here'} |"


if __name__ == "__main__":
    main()
