"""A running application as its clients and its operator see it."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import httpx
import ray

from tests.deployments.sse import Message, parse_event

POLL_S = 0.05
TIMEOUT_S = 60.0


class Service:
    """Talks HTTP to the application, and to Ray where one of its replicas is to be killed."""

    NAME = "latentmas"

    def __init__(self, port: int) -> None:
        self.port = port
        self._http = httpx.Client(base_url=self.url, timeout=TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def present(self, key: str) -> None:
        """Bear an API key from now on."""
        self._http.headers["authorization"] = f"Bearer {key}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=TIMEOUT_S)

    def get(self, path: str) -> httpx.Response:
        return self._http.get(path)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self._http.post(path, json=body)

    def ask(self, **body: Any) -> httpx.Response:
        return self.post("/v1/reason", **body)

    def stream(self, **body: Any) -> list[Message]:
        """All events of a streamed request."""
        with self._http.stream("POST", "/v1/reason", json=body | {"stream": True}) as response:
            response.raise_for_status()
            blocks = "".join(response.iter_text()).removesuffix("\n\n").split("\n\n")
        return [parse_event(block) for block in blocks]

    def stats(self) -> dict[str, Any]:
        response = self.get("/v1/stats")
        assert response.status_code == 200, response.text
        stats: dict[str, Any] = response.json()
        return stats

    def replicas(self) -> list[dict[str, Any]]:
        """The stats of all replicas of all groups."""
        return [replica for group in self.stats()["groups"].values() for replica in group]

    def total(self, field: str) -> int:
        """The sum of one count of ``/v1/stats`` over all replicas."""
        return sum(replica[field] for replica in self.replicas())

    def left_over(self) -> dict[str, int]:
        """What the replicas still hold, without what is nothing."""
        fields = ("num_running", "num_waiting", "num_memories")
        counts = {field: self.total(field) for field in fields}
        counts["num_used_blocks"] = self.num_used_blocks()
        counts["num_parcels"] = self.stats()["transfer"]["num_parcels"]
        return {field: count for field, count in counts.items() if count}

    def num_used_blocks(self) -> int:
        """Over all replicas, without those that adapters take."""
        return sum(
            one["num_used_blocks"] - one["adapters"]["num_blocks"] for one in self.replicas()
        )

    def wait_until_idle(self, *, timeout_s: float = 10.0) -> None:
        self.wait_until(lambda: not self.left_over(), timeout_s=timeout_s, says=self.left_over)

    def wait_until(
        self,
        condition: Callable[[], bool],
        *,
        timeout_s: float,
        says: Callable[[], object] = lambda: "",
    ) -> None:
        """Ask again and again; fails with what ``says`` says when the time is over."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {says()}"
            time.sleep(POLL_S)

    def kill_replica(self, group: str) -> None:
        """As a crash or a lost node does it: without a word."""
        begin = f"SERVE_REPLICA::{self.NAME}#{group}#"
        (name,) = [
            actor["name"]
            for actor in ray.util.list_named_actors(all_namespaces=True)
            if actor["name"].startswith(begin)
        ]
        ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)


async def events_of(response: httpx.Response) -> AsyncIterator[Message]:
    """Events of an open stream, as they come."""
    rest = ""
    async for text in response.aiter_text():
        *blocks, rest = (rest + text).split("\n\n")
        for block in blocks:
            yield parse_event(block)
    assert not rest, f"the stream ended within {rest!r}"
