"""The caller of hand-overs: a replica, as the ingress of a service is one."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple

from ray import serve

from benchmarks.serving.handoff_side import Copied, Span
from deployments.messages import Parcel, RemoteMemory, StageCall, StageMade
from deployments.transport import GroupHandle, stream_stage
from latentmas_core.pipelines.plan import Stage
from latentmas_core.pipelines.spec import NodeSpec
from latentmas_core.request import ReasonRequest

REQUEST = ReasonRequest(question="What is the capital of France?")


class HandOff(NamedTuple):
    """Seconds. ``whole``: from before the giver is called until the taker has the memory in blocks.

    pack: from blocks into the wire buffer; put: until the caller has a reference to it; fetch:
    from the start of the taker's stage until it has the tensors; load: into blocks; attach: what
    the first turn that reads it takes longer than the next.
    """

    whole: float
    pack: float
    put: float
    fetch: float
    load: float
    attach: float

    @property
    def calls(self) -> float:
        """All the rest."""
        return self.whole - self.pack - self.put - self.fetch - self.load - self.attach


@serve.deployment
class HandoffCaller:
    """Asks ``giver`` for memories by name and lets ``taker`` read them."""

    def __init__(self, giver: GroupHandle, taker: GroupHandle) -> None:
        self._giver = giver
        self._taker = taker

    async def hand_off(self, name: str) -> HandOff:
        started_s = time.perf_counter()
        remote = await self._give(name)
        given_s = time.perf_counter()
        await _run_stage(self._taker, _stage_call(name, remote))
        total_s = time.perf_counter() - started_s
        packed: dict[str, Span] = await self._giver.spans.remote()
        taken: dict[str, Span] = await self._taker.spans.remote()
        warm_turn_s = taken["warm turn"].duration_s
        return HandOff(
            whole=total_s - 2 * warm_turn_s,
            pack=packed["pack"].duration_s,
            put=given_s - packed["pack"].ended_s,
            fetch=taken["load"].started_s - taken["stage"].started_s,
            load=taken["load"].duration_s,
            attach=taken["turn"].duration_s - warm_turn_s,
        )

    async def hand_off_by_value(self, name: str) -> float:
        """Seconds, as ``whole``, for the naive way: all tensors by value, through the caller."""
        started_s = time.perf_counter()
        memory, tensors = await self._giver.give_by_value.remote(name)
        await self._taker.take_by_value.remote(memory, tensors)
        total_s = time.perf_counter() - started_s
        taken: dict[str, Span] = await self._taker.spans.remote()
        return total_s - 2 * taken["warm turn"].duration_s

    async def put_s(self, num_bytes: int) -> float:
        seconds: float = await self._giver.put_s.remote(num_bytes)
        return seconds

    async def num_bytes(self, name: str) -> int:
        return (await self._give(name)).num_bytes

    async def is_the_same(self, name: str) -> bool:
        """Whether what the taker has in its blocks is what the giver has in its own."""
        remote = await self._give(name)
        theirs: str = await self._taker.digest_of_remote.remote(remote)
        ours: str = await self._giver.digest.remote(name)
        return ours == theirs

    async def copied(self, name: str) -> tuple[Copied, Copied]:
        """By the giver and by the taker."""
        remote = await self._give(name)
        giving: Copied = await self._giver.copied_by_packing.remote(name)
        taking: Copied = await self._taker.copied_by_loading.remote(remote)
        return giving, taking

    async def _give(self, name: str) -> RemoteMemory:
        """As ``ServeAgentRunner`` runs a stage that reads nothing."""
        made: StageMade | None = None
        parcels: tuple[Parcel, ...] = ()
        async with aclosing(stream_stage(self._giver, _stage_call(name))) as messages:
            async for message in messages:
                if isinstance(message, StageMade):
                    made = message
                elif isinstance(message, Parcel):
                    parcels = (*parcels, message)
        assert made is not None, "a stage ended without StageMade"
        assert made.memory is not None, "a stage that hands over made no memory"
        return RemoteMemory(made.memory, parcels)


@serve.deployment
class SilentCaller:
    """Calls stages that do nothing."""

    def __init__(self, *groups: GroupHandle) -> None:
        self._groups = groups

    async def plain_call_s(self) -> float:
        return await _timed(self._groups[0].ping.remote)

    async def stage_calls_s(self, num_groups: int) -> float:
        """One stage in each of so many groups, at once."""

        async def call_all() -> None:
            await asyncio.gather(*(_run_stage(g, _stage_call("planner")) for g in groups))

        groups: Sequence[GroupHandle] = self._groups[:num_groups]
        return await _timed(call_all)


async def _timed(call: Callable[[], Awaitable[object]]) -> float:
    started_s = time.perf_counter()
    await call()
    return time.perf_counter() - started_s


async def _run_stage(group: GroupHandle, call: StageCall) -> None:
    """A stage whose messages are not looked at."""
    async with aclosing(stream_stage(group, call)) as messages:
        async for _ in messages:
            pass


def _stage_call(name: str, memory: RemoteMemory | None = None) -> StageCall:
    node = NodeSpec(name=name, agent="planner")
    return StageCall(Stage(name, "group", (node,)), memory, (), REQUEST)
