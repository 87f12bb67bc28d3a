"""Somebody who opens the page: what they do, what they see, and what their browser complains of."""

import re
import time
from typing import Any, Self

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, Response, expect

TIMEOUT_MS = 20_000
COMPLAINTS_S = 5.0
POLL_MS = 50.0
WIDE = (1280, 900)
NARROW = (375, 812)
NARROWEST = (360, 740)

# What the policy of the page forbids is reported here as well as on the console.
_REPORT_VIOLATIONS = """
    addEventListener("securitypolicyviolation", (event) =>
        console.error(`violates ${event.violatedDirective}: ${event.blockedURI}`));
"""


class Visitor:
    """Whoever leaves is asked for complaints: errors and warnings of the console, failed requests
    and refused answers fail the test, but for those that it ``expects``."""

    def __init__(
        self, browser: Browser, size: tuple[int, int] = WIDE, *, scheme: str = "light"
    ) -> None:
        self._context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,  # type: ignore[arg-type]
            reduced_motion="reduce",
        )
        self._context.set_default_timeout(TIMEOUT_MS)
        self._context.add_init_script(_REPORT_VIOLATIONS)
        self.page: Page = self._context.new_page()
        self._complaints: list[str] = []
        self._expected: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self._complaints.append(f"uncaught: {error}"))
        self.page.on("requestfailed", self._note_failure)
        self.page.on("response", self._note_refusal)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._check_complaints()
        finally:
            self._context.close()

    def open(self, url: str) -> None:
        """Load the page and wait until it knows what can be asked for."""
        self.page.goto(f"{url}/")
        expect(self.status).to_have_text("Ready.")

    def field(self, label: str) -> Locator:
        return self.page.locator("#ask").get_by_label(label)

    def fill(self, **fields: object) -> None:
        for label, value in fields.items():
            self.field(label.replace("_", " ")).fill(str(value))

    def choose(self, *, pipeline: str | None = None, mode: str | None = None) -> None:
        if pipeline is not None:
            self.field("Pipeline").select_option(pipeline)
        if mode is not None:
            self.page.get_by_role("radio", name=mode).check()

    def press(self, button: str) -> None:
        self.page.get_by_role("button", name=button, exact=True).click()

    def wait_for_answer(self) -> str:
        """The answer; fails where the page says something else."""
        expect(self.status).to_have_text("Answered.")
        return self.page.locator("#answer").inner_text()

    @property
    def status(self) -> Locator:
        return self.page.get_by_role("status")

    @property
    def alert(self) -> Locator:
        return self.page.get_by_role("alert")

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_text_contents()

    def attributes(self, selector: str, name: str) -> list[str]:
        found = self.page.locator(selector).all()
        return [one.get_attribute(name) or "" for one in found]

    def expects(self, pattern: str) -> None:
        """There has to be a complaint like this by the end, and any number of them may be."""
        self._expected.append(pattern)

    def _check_complaints(self) -> None:
        """Some come later than what they are about."""
        deadline = time.monotonic() + COMPLAINTS_S
        while missing := [one for one in self._expected if not self._are_like(one)]:
            assert time.monotonic() < deadline, f"nothing like {missing} in {self._complaints}"
            self.page.wait_for_timeout(POLL_MS)
        known = [complaint for one in self._expected for complaint in self._are_like(one)]
        assert [one for one in self._complaints if one not in known] == []

    def _are_like(self, pattern: str) -> list[str]:
        return [one for one in self._complaints if re.search(pattern, one)]

    def call(self, module: str, expression: str, *arguments: Any) -> Any:
        """What an expression over a module of the page, ``m``, and arguments, ``a``, gives."""
        script = f'async (a) => {{ const m = await import("./playground/{module}"); '
        return self.page.evaluate(f"{script} return {expression}; }}", list(arguments))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._complaints.append(f"console: {message.text} ({message.location.get('url')})")

    def _note_failure(self, request: Request) -> None:
        self._complaints.append(f"failed: {request.method} {request.url}: {request.failure}")

    def _note_refusal(self, response: Response) -> None:
        if response.status >= 400:
            self._complaints.append(f"refused: {response.status} {response.url}")
