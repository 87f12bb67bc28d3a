"""The notes of a release come from the changelog, and only its own."""

import pytest

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
