"""A hub of a few repositories on the loopback interface: what huggingface_hub asks of one."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

COMMIT = "c0ffee" + "0" * 34
NEXT_COMMIT = "facade" + "0" * 34
TOKEN = "hf_secret"


@dataclass
class Hub:
    """Repositories by name, each with its files, all at ``COMMIT``; ``private`` want the token.

    What may go wrong: ``cut`` send half of their weights, ``moved`` get a new commit once they have
    been described, ``unsized`` do not say how large they are, ``withheld`` are described, but
    their files answer 403, ``broken`` answer 500, ``foreign`` no JSON, and ``silent`` not at all.
    """

    repositories: dict[str, dict[str, bytes]]
    private: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    moved: set[str] = field(default_factory=set)
    unsized: set[str] = field(default_factory=set)
    withheld: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    url: str = ""
    is_closing: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve_hub(hub: Hub) -> Iterator[Hub]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.is_closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Be quiet."""

    def _answer(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), parts[5] if "revision" in parts else "main")
        else:
            self._send_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _find(self, name: str, revision: str) -> dict[str, bytes] | None:
        if name in self.hub.silent:
            self.hub.is_closing.wait()
        elif name in self.hub.broken:
            self._fail(500, "", "")
        elif name not in self.hub.repositories:
            self._fail(401, "RepoNotFound", "Repository not found")
        elif name in self.hub.private and self.headers["authorization"] != f"Bearer {TOKEN}":
            self._fail(403, "GatedRepo", "Access to it is restricted")
        elif revision not in ("main", COMMIT):
            self._fail(404, "RevisionNotFound", "Revision not found")
        else:
            return self.hub.repositories[name]
        return None

    def _describe(self, name: str, revision: str) -> None:
        files = self._find(name, revision)
        if files is None:
            return
        sizes = (
            {} if name in self.hub.unsized else {file: len(data) for file, data in files.items()}
        )
        siblings = [{"rfilename": file, "size": sizes.get(file)} for file in files]
        described = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings}
        body = b"<html>" if name in self.hub.foreign else json.dumps(described).encode()
        self._send(200, body, {"Content-Type": "application/json"})

    def _send_file(self, name: str, revision: str, file: str) -> None:
        files = self._find(name, revision)
        if files is None:
            return
        if name in self.hub.withheld:
            self._fail(403, "", "")
            return
        if file not in files:
            self._fail(404, "EntryNotFound", "Entry not found")
            return
        content = files[file]
        etag = hashlib.sha256(content).hexdigest()
        commit = NEXT_COMMIT if name in self.hub.moved and revision == "main" else COMMIT
        if name in self.hub.cut and self.command == "GET" and file.endswith(".safetensors"):
            content = content[: len(content) // 2]
        self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def _fail(self, status: int, code: str, message: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
