"""The page at ``GET /`` and the list of all calls at ``GET /docs``: their files, and what browsers
are told to allow them.

Knows nothing of agents: the pages are clients of the API like any other.
"""

import os
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.staticfiles import PathLike, StaticFiles
from starlette.types import Scope

_ROOM = Path(__file__).parent
ASSETS = _ROOM / "assets"
MOUNT = "/playground"
PAGES = {"/": "index.html", "/docs": "docs.html"}

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# Whatever finds its way into the page, a token of a model or the name of an adapter, is text there:
# nothing but its own files is run, drawn or asked.
_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' data:",
    "form-action 'none'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
HEADERS = {
    "Content-Security-Policy": "; ".join(_POLICY),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept, and asked for again by its tag: after an update no old file meets a new one.
    "Cache-Control": "no-cache",
}

# Each file by its own path: whoever has no key reads these and nothing beside them.
PAGE_PATHS = frozenset({*PAGES, *(f"{MOUNT}/{path.name}" for path in ASSETS.iterdir())})


class PageFiles(StaticFiles):
    """Files with the page's headers, and media types that do not depend on the machine."""

    def file_response(
        self,
        full_path: PathLike,
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(HEADERS)
        if response.status_code == 200:
            response.headers["Content-Type"] = MEDIA_TYPES[Path(full_path).suffix]
        return response


def add_pages(app: FastAPI) -> None:
    """The pages, and what they are made of. Their URLs are relative, so any prefix will do."""
    files = PageFiles(directory=_ROOM)
    for path, name in PAGES.items():
        _add_page(app, path, files, name)
    app.mount(MOUNT, PageFiles(directory=ASSETS))


def _add_page(app: FastAPI, path: str, files: PageFiles, name: str) -> None:
    @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return await files.get_response(name, request.scope)
