"""Pictures of the page for the docs: ``python -m tests.deployments.page.screenshots [--url URL]``.

Asks a running service (``make serve``), compares the modes, and takes the page wide and narrow.
"""

import argparse
from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.deployments.page.chromium import chromium, find_chromium
from tests.deployments.page.visitor import NARROW, WIDE, Visitor

QUESTION = "What is the capital of France?"
ANSWER_TIMEOUT_MS = 120_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--folder", type=Path, default=Path("docs"))
    args = parser.parse_args()
    path = find_chromium()
    if path is None:
        raise SystemExit("no browser was found. Try: make browser")
    with chromium(path) as browser:
        take(browser, args.url, args.folder / "page-wide.png", WIDE, "light")
        take(browser, args.url, args.folder / "page-narrow.png", NARROW, "dark")


def take(browser: Browser, url: str, path: Path, size: tuple[int, int], scheme: str) -> None:
    """The whole page, after a comparison whose last word is the latent mode's."""
    with Visitor(browser, size, scheme=scheme) as visitor:
        visitor.open(url)
        visitor.fill(Question=QUESTION, Max_tokens=40, Temperature=0)
        visitor.press("Compare modes")
        expect(visitor.status).to_have_text(
            "All three modes have answered.", timeout=ANSWER_TIMEOUT_MS
        )
        visitor.press("Ask")
        expect(visitor.status).to_have_text("Answered.", timeout=ANSWER_TIMEOUT_MS)
        visitor.page.evaluate("document.activeElement.blur()")
        visitor.page.screenshot(path=path, full_page=True)


if __name__ == "__main__":
    main()
