"""A browser for all tests of the page, and in it a visitor who notes everything that goes wrong."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser

from deployments.api.access import Access
from tests.deployments.keys import make_app
from tests.deployments.page.chromium import NAMES, chromium, find_chromium, is_required
from tests.deployments.page.scripted import ScriptedReasoner, serving
from tests.deployments.page.visitor import Visitor


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """An event loop runs in this thread as long as it is open, so these tests are not async."""
    path = find_chromium()
    if path is None:
        message = f"no browser: none of {', '.join(NAMES)} is in PATH. Try: make browser"
        pytest.fail(message) if is_required() else pytest.skip(message)
    with chromium(path) as browser:
        yield browser


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Visitor]:
    with Visitor(browser) as visitor:
        yield visitor


class OpenService(NamedTuple):
    """Asks for no key; its agents do as ``reasoner`` is told."""

    reasoner: ScriptedReasoner
    url: str


@pytest.fixture(scope="package")
def open_service() -> Iterator[OpenService]:
    reasoner = ScriptedReasoner()
    with serving(make_app(reasoner, Access())) as url:
        yield OpenService(reasoner, url)


@pytest.fixture
def reasoner(open_service: OpenService) -> ScriptedReasoner:
    open_service.reasoner.reset()
    return open_service.reasoner


@pytest.fixture
def url(open_service: OpenService, reasoner: ScriptedReasoner) -> str:
    return open_service.url
