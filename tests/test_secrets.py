"""No tracked file holds a key."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECRET = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"
    rb"|\bhf_[A-Za-z0-9]{30,}"
    rb"|\bsk-[A-Za-z0-9_-]{32,}"
    rb"|\bghp_[A-Za-z0-9]{36}"
    rb"|\bgithub_pat_[A-Za-z0-9_]{40,}"
    rb"|\bAKIA[0-9A-Z]{16}\b"
)


def test_no_tracked_file_holds_a_secret() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    paths = [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]
    assert paths
    assert [path for path in paths if path.is_file() and SECRET.search(path.read_bytes())] == []


# Put together here, so that this file holds none itself.
@pytest.mark.parametrize(
    "seeded",
    [
        "-----BEGIN RSA " + "PRIVATE KEY-----",
        "hf_" + "a" * 34,
        "sk-" + "b" * 48,
        "sk-" + "proj-" + "e" * 40,
        "github_" + "pat_" + "f" * 50,
        "ghp_" + "c" * 36,
        "AKIA" + "D" * 16,
    ],
)
def test_a_seeded_secret_is_caught(seeded: str) -> None:
    assert SECRET.search(f"key: {seeded}\n".encode())
