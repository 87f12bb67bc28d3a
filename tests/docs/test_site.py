"""The site builds without a warning and asks no other host for anything."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOADED = re.compile(r"""<(?:script|img|link)[^>]+(?:src|href)=["']?https?://[^>]*>""")


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    for page in tmp_path.rglob("*.html"):
        assert LOADED.findall(page.read_text()) == [], page


def test_every_page_is_in_the_navigation():
    told = set(re.findall(r"[a-z-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert told == {path.name for path in (ROOT / "docs").glob("*.md")}
