"""A crowd over HTTP: each client asks again and again on a connection of its own. Knows no Ray."""

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import httpx

OK = 200
MAY_REFUSE = frozenset({429, 503})  # each says when to come back
PATIENCE_S = 180.0  # how long a client waits for the next piece of an answer
_ERROR_MESSAGE = 'data: {"error"'


class Ask(NamedTuple):
    """One request; its client hangs up behind so many messages of its stream, if that is set."""

    kind: str
    path: str
    body: Mapping[str, Any]
    leaves_behind: int | None = None


class Reply(NamedTuple):
    """What came of a request. ``status`` is None if nothing came, ``problem`` is what a service
    must not do, in words, and ``retry_after_s`` is when a refusal wants to be asked again."""

    kind: str
    status: int | None
    duration_s: float
    problem: str | None = None
    retry_after_s: float = 0.0


@dataclass(frozen=True)
class CrowdRun:
    """What all clients saw, in any order. ``duration_s``: until the last of them had ended."""

    num_clients: int
    duration_s: float
    replies: Sequence[Reply]

    @property
    def num_by_kind(self) -> dict[str, dict[str, int]]:
        """By kind of request, by status."""
        counts = Counter((reply.kind, _shown(reply.status)) for reply in self.replies)
        kinds = sorted({kind for kind, _ in counts})
        return {
            kind: {status: counts[of, status] for of, status in sorted(counts) if of == kind}
            for kind in kinds
        }

    @property
    def problems(self) -> dict[str, int]:
        """Each problem once, with how many met it."""
        return dict(Counter(reply.problem for reply in self.replies if reply.problem))

    @property
    def answered_s(self) -> list[float]:
        """How long requests took that were answered to their end."""
        return [
            reply.duration_s
            for reply in self.replies
            if reply.status == OK and reply.kind != "leaves" and not reply.problem
        ]


def _shown(status: int | None) -> str:
    return "none" if status is None else str(status)


def asks_of(client: int) -> Iterator[Ask]:
    """What a client asks, without end: each kind in turn, every client beginning with another."""
    leaves_behind = 1 + 3 * (client % 10)  # some as soon as it begins, some within the answer
    makers = (_whole, _streamed, _chat, _streamed_chat, partial(_leaving, leaves_behind))
    for index in itertools.count():
        question = f"What is {client} plus {index}?"
        yield makers[(client + index) % len(makers)](question)


def _fields(question: str) -> dict[str, Any]:
    return {"question": question, "max_tokens": 8, "temperature": 0.0}


def _whole(question: str) -> Ask:
    return Ask("whole", "/v1/reason", _fields(question) | {"mode": "single"})


def _streamed(question: str) -> Ask:
    return Ask("streamed", "/v1/reason", _fields(question) | {"latent_steps": 2, "stream": True})


def _leaving(leaves_behind: int, question: str) -> Ask:
    """Would write for long, were anybody there to read it."""
    endless = {"latent_steps": 2, "max_tokens": 512, "ignore_eos": True, "stream": True}
    return Ask("leaves", "/v1/reason", _fields(question) | endless, leaves_behind)


def _chat(question: str) -> Ask:
    body = {
        "model": "latentmas/chat",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 8,
        "temperature": 0.0,
    }
    return Ask("chat", "/v1/chat/completions", body)


def _streamed_chat(question: str) -> Ask:
    chat = _chat(question)
    return Ask("streamed chat", chat.path, {**chat.body, "stream": True})


def run_crowd(
    url: str, *, num_clients: int, seconds: float, headers: Mapping[str, str] | None = None
) -> CrowdRun:
    """After ``seconds`` nobody asks anything new; what is under way is answered."""
    return asyncio.run(_run_crowd(url, num_clients, seconds, headers))


async def _run_crowd(
    url: str, num_clients: int, seconds: float, headers: Mapping[str, str] | None
) -> CrowdRun:
    options: dict[str, Any] = {
        "base_url": url,
        "headers": headers,
        "timeout": PATIENCE_S,
        "limits": httpx.Limits(max_connections=1),
        "verify": httpx.create_ssl_context(),  # unused, but each client would make its own
    }
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(httpx.AsyncClient(**options))
            for _ in range(num_clients)
        ]
        began_at = time.perf_counter()
        of_clients = await asyncio.gather(
            *(_run_client(http, index, began_at + seconds) for index, http in enumerate(clients))
        )
        duration_s = time.perf_counter() - began_at
    return CrowdRun(num_clients, duration_s, [reply for replies in of_clients for reply in replies])


async def _run_client(http: httpx.AsyncClient, client: int, ends_at: float) -> list[Reply]:
    replies: list[Reply] = []
    for ask in asks_of(client):
        left_s = ends_at - time.perf_counter()
        if left_s <= 0:
            break
        reply = await _ask(http, ask)
        replies.append(reply)
        if reply.retry_after_s:
            await asyncio.sleep(min(reply.retry_after_s, max(0.0, ends_at - time.perf_counter())))
    return replies


async def _ask(http: httpx.AsyncClient, ask: Ask) -> Reply:
    began_at = time.perf_counter()
    status: int | None = None
    retry_after: str | None = None
    try:
        async with http.stream("POST", ask.path, json=dict(ask.body)) as response:
            status, retry_after = response.status_code, response.headers.get("retry-after")
            problem = problem_of(status, retry_after) or await _read(response, ask)
    except httpx.HTTPError as error:
        problem = f"{type(error).__name__}: {error}"
    return Reply(
        ask.kind,
        status,
        time.perf_counter() - began_at,
        problem,
        float(retry_after) if retry_after and problem is None else 0.0,
    )


def problem_of(status: int, retry_after: str | None) -> str | None:
    """What is wrong with an answer that begins like this; None if it is one that may come."""
    if status == OK:
        return None
    if status not in MAY_REFUSE:
        return f"status {status}"
    if retry_after is None or not retry_after.isdecimal():
        return f"status {status} with Retry-After {retry_after!r}"
    return None


async def _read(response: httpx.Response, ask: Ask) -> str | None:
    """The rest of an answer; an error that ends a stream is a problem."""
    if "event-stream" not in response.headers.get("content-type", ""):
        await response.aread()
        return None
    num_messages = 0
    async for line in response.aiter_lines():
        if line.startswith(_ERROR_MESSAGE):
            error = json.loads(line.removeprefix("data: "))["error"]
            return f"stream ended with {error['code']}: {error['message']}"
        num_messages += line.startswith("data: ")
        if num_messages == ask.leaves_behind:
            return None
    return None if ask.leaves_behind is None else "stream ended before its client left"
