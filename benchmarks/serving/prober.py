"""Asks a service whether it lives, at a steady pace. In a worker: a busy client would be late."""

import asyncio
import threading
import time
from typing import NamedTuple

import httpx

TIMEOUT_S = 30.0


class Probe(NamedTuple):
    """``problem`` in words if it was not answered with 200."""

    duration_s: float
    problem: str | None


class Prober:
    """``begin`` returns at once, ``finish`` when all that was asked is answered."""

    def __init__(self, url: str, period_s: float) -> None:
        self._url = url
        self._period_s = period_s
        self._probes: list[Probe] = []
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def begin(self, *, seconds: float) -> None:
        self._probes = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(seconds)))
        self._thread.start()

    def finish(self) -> list[Probe]:
        self.close()
        return self._probes

    async def _run(self, seconds: float) -> None:
        """Whatever the answers take, the next one is asked when it is due."""
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as http, asyncio.TaskGroup() as asking:
            began_at = time.perf_counter()
            for index in range(round(seconds / self._period_s)):
                due_at = began_at + index * self._period_s
                await asyncio.sleep(max(0.0, due_at - time.perf_counter()))
                asking.create_task(self._probe(http))

    async def _probe(self, http: httpx.AsyncClient) -> None:
        began_at = time.perf_counter()
        try:
            response = await http.get(self._url)
            problem = None if response.status_code == 200 else f"status {response.status_code}"
        except httpx.HTTPError as error:
            problem = f"{type(error).__name__}: {error}"
        self._probes.append(Probe(time.perf_counter() - began_at, problem))
