"""A worker in a process of its own, behind the local API server of RunPod's SDK."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.ports import free_port

START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 20.0
POLL_S = 0.1


class WorkerProcess:
    """Listens on 127.0.0.1 alone; ``log`` is what it wrote."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self._environment = environment
        self._log = log

    def __enter__(self) -> Self:
        self._port = free_port()
        options = ("--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(self._port))
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "deployments.runpod_worker", *options],
                env={**os.environ, **self._environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=60.0)
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        response = self._client.post(path, json=body)
        assert response.status_code == 200, f"{response.text}\n{self._log.read_text()}"
        answer: dict[str, Any] = response.json()
        return answer

    def close(self) -> int:
        """As Ctrl-C does; the exit status."""
        self._client.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _wait_until_it_answers(self) -> None:
        ends_at = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self._client.get("/openapi.json").raise_for_status()
                return
            except httpx.HTTPError:
                if self._process.poll() is not None or time.monotonic() > ends_at:
                    raise AssertionError(
                        f"the worker did not start:\n{self._log.read_text()}"
                    ) from None
            time.sleep(POLL_S)
