"""What the suite keeps of each program: one small JSON file, which is committed.

benchmarks/results/RUN/PROGRAM.json     RUN is "quick", "full" or a name that was given
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.machine import ROOT
from benchmarks.measure import Measurement, measurement_of
from benchmarks.suite.parts import NAMES, Part

RESULTS = ROOT / "benchmarks" / "results"
# Every probe and every answer of the crowd: thousands of figures, whose percentiles are kept.
LEFT_OUT = ("crowd",)


@dataclass(frozen=True)
class Commit:
    """What was checked out. ``is_modified``: files differed from it."""

    commit: str | None
    is_modified: bool

    def __str__(self) -> str:
        return (self.commit or "unknown")[:7] + (", modified" if self.is_modified else "")


@dataclass(frozen=True)
class Result:
    """What one program came to.

    report: what it wrote, None if it ended without. failure: why the figures are not to be
    trusted, or not there.
    """

    part: str
    command: str
    at: Commit
    machine: Mapping[str, Any]
    versions: Mapping[str, Any]
    duration_s: float
    failure: str | None
    report: Mapping[str, Any] | None

    @property
    def measurements(self) -> list[Measurement]:
        found = [] if self.report is None else self.report["measurements"]
        return [measurement_of(one) for one in found]

    @property
    def loads(self) -> list[Mapping[str, Any]]:
        """What clients saw of a service under load, by their number and mode."""
        return [] if self.report is None else list(self.report.get("load", ()))

    def is_of(self, part: Part, at: Commit) -> bool:
        """Whether ``part`` need not be run again. Of files that were modified nobody knows."""
        is_known = at.commit is not None and not at.is_modified
        return is_known and (self.at, self.command, self.failure) == (at, part.command, None)

    @classmethod
    def read(cls, file: Path) -> Self:
        fields = json.loads(file.read_text(encoding="utf-8"))
        return cls(**fields | {"at": Commit(**fields["at"])})


class ResultsFolder:
    """The programs of one run, by their names; a program that is run again replaces its file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def results(self) -> list[Result]:
        """Those that are there, in the suite's order."""
        found = (self.find(name) for name in NAMES)
        return [result for result in found if result is not None]

    def find(self, name: str) -> Result | None:
        file = self._file(name)
        return Result.read(file) if file.exists() else None

    def store(self, result: Result) -> None:
        """Whole or not at all, whenever the suite is killed."""
        self.path.mkdir(parents=True, exist_ok=True)
        file = self._file(result.part)
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
        draft.replace(file)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.json"


def all_folders(root: Path = RESULTS) -> list[ResultsFolder]:
    """One for each run that is kept, in the order of their names."""
    if not root.exists():
        return []
    return [ResultsFolder(path) for path in sorted(root.iterdir()) if path.is_dir()]
