"""The part of CHANGELOG.md about one version: `python -m tools.release_notes 0.1.0`."""

import sys
from pathlib import Path

CHANGELOG = Path(__file__).resolve().parents[1] / "CHANGELOG.md"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("Name one version: python -m tools.release_notes 0.1.0")
    try:
        sys.stdout.write(release_notes(CHANGELOG.read_text(), sys.argv[1].removeprefix("v")) + "\n")
    except ValueError as error:
        sys.exit(str(error))


def release_notes(changelog: str, version: str) -> str:
    """What stands below the heading of `version`, up to the next version."""
    found: list[str] | None = None
    for line in changelog.splitlines():
        if line.startswith("## "):
            if found is not None:
                break
            if line.startswith(f"## [{version}]"):
                found = []
        elif found is not None:
            found.append(line)
    if not (notes := "\n".join(found or []).strip()):
        raise ValueError(f"CHANGELOG.md says nothing about version {version}.")
    return notes


if __name__ == "__main__":
    main()
