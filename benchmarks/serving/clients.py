"""Clients of a service over HTTP: one that asks, and many in a closed loop. Knows no Ray."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import httpx

from benchmarks.measure import percentile


class Answered(NamedTuple):
    """``duration_s`` by the caller's clock; ``result`` as it is returned over HTTP."""

    duration_s: float
    result: dict[str, Any]


@dataclass(frozen=True)
class LoadRun:
    """What a number of clients saw. ``errors`` are in words; they have no latency."""

    mode: str
    num_clients: int
    duration_s: float
    latencies_s: Sequence[float]
    usage: Mapping[str, int]
    errors: Sequence[str]

    @property
    def num_answers(self) -> int:
        return len(self.latencies_s)

    @property
    def requests_per_s(self) -> float:
        return self.num_answers / self.duration_s

    def percentile_s(self, percent: int) -> float:
        return percentile(self.latencies_s, percent)

    def as_dict(self) -> dict[str, Any]:
        percentiles = {f"p{percent}_s": self.percentile_s(percent) for percent in (50, 90, 99)}
        return asdict(self) | percentiles | {"requests_per_s": self.requests_per_s}


class ServedSide:
    """One client that keeps its connection."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._http = httpx.Client(base_url=url, timeout=timeout_s)

    def close(self) -> None:
        self._http.close()

    def ask(self, fields: Mapping[str, Any]) -> Answered:
        """httpx.HTTPStatusError unless it is answered."""
        started_s = time.perf_counter()
        response = self._http.post("/v1/reason", json=dict(fields))
        duration_s = time.perf_counter() - started_s
        response.raise_for_status()
        return Answered(duration_s, response.json())


def run_load(
    url: str, mode: str, requests_of: Sequence[Sequence[Mapping[str, Any]]], *, timeout_s: float
) -> LoadRun:
    """``requests_of`` each client, which sends the next once the last is answered."""
    return asyncio.run(_run_load(url, mode, requests_of, timeout_s))


async def _run_load(
    url: str, mode: str, requests_of: Sequence[Sequence[Mapping[str, Any]]], timeout_s: float
) -> LoadRun:
    num_clients = len(requests_of)
    limits = httpx.Limits(max_connections=num_clients)
    async with httpx.AsyncClient(base_url=url, timeout=timeout_s, limits=limits) as http:
        started_s = time.perf_counter()
        of_clients = await asyncio.gather(
            *(_run_client(http, mode, requests) for requests in requests_of)
        )
        duration_s = time.perf_counter() - started_s
    outcomes = [outcome for of_client in of_clients for outcome in of_client]
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answered)]
    return LoadRun(
        mode,
        num_clients,
        duration_s,
        [answer.duration_s for answer in answers],
        _usage(answers),
        [outcome for outcome in outcomes if isinstance(outcome, str)],
    )


async def _run_client(
    http: httpx.AsyncClient, mode: str, requests: Sequence[Mapping[str, Any]]
) -> list[Answered | str]:
    return [await _ask(http, {**fields, "mode": mode}) for fields in requests]


async def _ask(http: httpx.AsyncClient, fields: dict[str, Any]) -> Answered | str:
    """The answer, or what went wrong."""
    started_s = time.perf_counter()
    try:
        response = await http.post("/v1/reason", json=fields)
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    if response.is_error:
        return f"{response.status_code}: {response.text}"
    return Answered(time.perf_counter() - started_s, response.json())


def _usage(answers: Sequence[Answered]) -> dict[str, int]:
    fields = ("prompt_tokens", "completion_tokens", "latent_steps")
    return {field: sum(answer.result["usage"][field] for answer in answers) for field in fields}
