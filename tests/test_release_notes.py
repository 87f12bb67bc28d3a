"""The notes of a release come from the changelog, and only its own."""

import re
import tomllib
from datetime import date
from pathlib import Path

import pytest

from tools import release_notes as tool
from tools.release_notes import release_notes

CHANGELOG = """# Changelog

## [Unreleased]

## [1.1.0] - 2026-02-01

### Added

- Second.

## [1.1] - 2026-01-01

- First.
"""


def test_notes_are_those_of_one_version() -> None:
    assert release_notes(CHANGELOG, "1.1.0") == "### Added\n\n- Second."
    assert release_notes(CHANGELOG, "1.1") == "- First."


@pytest.mark.parametrize("version", ["9.9.9", "Unreleased"])
def test_a_version_without_notes_is_refused(version: str) -> None:
    with pytest.raises(ValueError, match=f"nothing about version {version}"):
        release_notes(CHANGELOG, version)


ROOT = Path(__file__).resolve().parents[1]
OURS = (ROOT / "CHANGELOG.md").read_text()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
# Those of Keep a Changelog, in its order.
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]


def test_our_changelog_has_dated_versions_below_what_is_not_released() -> None:
    unreleased, *released = re.findall(r"^## (.+)$", OURS, flags=re.M)
    assert unreleased == "[Unreleased]"
    versions = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", one) for one in released]
    assert all(versions)
    dates = [date.fromisoformat(one[2]) for one in versions if one]
    assert dates == sorted(dates, reverse=True)


def test_our_changelog_has_the_sections_of_keep_a_changelog_in_their_order() -> None:
    for part in re.split(r"^## ", OURS, flags=re.M)[1:]:
        kinds = re.findall(r"^### (.+)$", part, flags=re.M)
        assert kinds == [kind for kind in KINDS if kind in kinds], part[:40]


def test_the_version_of_the_package_is_the_latest_one_of_the_changelog() -> None:
    assert re.findall(r"^## \[(\d.*?)\]", OURS, flags=re.M)[0] == VERSION


def test_the_notes_of_the_version_are_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["release_notes", f"v{VERSION}"])
    tool.main()
    assert capsys.readouterr().out.startswith("### ")


def test_images_are_named_by_the_version_of_the_package() -> None:
    files = [ROOT / "compose.yaml", *sorted((ROOT / "k8s").rglob("*.yaml"))]
    images = [
        image
        for file in files
        for image in re.findall(r"\bimage: (\S*/latentmas:\S+)", file.read_text())
    ]
    assert len(images) >= 5
    for image in images:
        assert image.rpartition(":")[2].removesuffix("-cuda") == VERSION, image
