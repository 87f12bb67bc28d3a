"""Which replica of a group a call goes to: where its adapters and its memory already are.

What a call needs is read from the ``routing_hint`` of its first argument; without one all replicas
are equal. Serve pickles this module by value, so it imports nothing of ours.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from ray.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    RequestRouter,
    RunningReplica,
)

# What a replica reports in ``record_routing_stats``.
ADAPTERS = "adapters"
FREE_BLOCKS = "free_blocks"

DEFAULT_MAX_LEAD = 8


class RoutingHint(NamedTuple):
    """What a call needs: names of adapters, and ids of the nodes where its memory lies."""

    adapters: tuple[str, ...] = ()
    node_ids: tuple[str, ...] = ()


class Candidate(NamedTuple):
    """What is known of a replica. ``num_ongoing``: None if it was not heard of lately."""

    adapters: frozenset[str]
    node_id: str | None
    num_ongoing: int | None
    max_ongoing: int
    has_free_blocks: bool = True


def rank(
    candidates: Sequence[Candidate], hint: RoutingHint, *, max_lead: int = DEFAULT_MAX_LEAD
) -> list[list[int]]:
    """Indices of candidates, best rank first: a later rank is for when an earlier one declines.

    Adapters and memory there; adapters there; memory there; the others; those that are full. The
    adapters are where most of them are, if any is. A replica is one of the others, whatever it
    holds, when it has over ``max_lead`` more requests than the least loaded, or no free KV block
    while another has: what it holds is not worth the wait.
    """
    ranks: list[list[int]] = [[] for _ in range(5)]
    fewest = min((one.num_ongoing or 0 for one in candidates), default=0)
    can_avoid_full_pools = any(one.has_free_blocks for one in candidates)
    num_held = [len(one.adapters.intersection(hint.adapters)) for one in candidates]
    most_held = max(1, *num_held) if hint.adapters and num_held else 0
    for index, one in enumerate(candidates):
        num_ongoing = one.num_ongoing or 0
        if num_ongoing >= one.max_ongoing:
            ranks[4].append(index)
        elif num_ongoing - fewest > max_lead or (can_avoid_full_pools and not one.has_free_blocks):
            ranks[3].append(index)
        else:
            has_adapters = num_held[index] == most_held
            is_near = one.node_id in hint.node_ids
            ranks[2 * (not has_adapters) + (not is_near)].append(index)
    return [indices for indices in ranks if indices]


class ResidencyRouter(FIFOMixin, RequestRouter):
    """Prefers replicas that hold what a call needs, as long as it need not wait for them.

    Within a rank the less loaded of two at random, as Serve's own router does ("The power of two
    choices in randomized load balancing", Mitzenmacher 2001). Residency is a hint: a replica loads
    what it lacks.
    """

    def initialize_state(  # type: ignore[override]  # so that a misspelt one is an error
        self, *, max_lead: int = DEFAULT_MAX_LEAD
    ) -> None:
        """``request_router_kwargs`` of the deployment."""
        if max_lead < 0:
            raise ValueError(
                f"max_lead is {max_lead}: so many more requests than the least loaded replica. "
                "Use 0 or more"
            )
        self._max_lead = max_lead
        self._being_sent: Counter[str] = Counter()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Serve's call: the replicas, each in a list of its own, the best first."""
        if pending_request is not None:
            # Every replica is offered each time: Serve is to wait a little before it asks again.
            pending_request.routing_context.should_backoff = True
        candidates = [self._look_at(replica) for replica in candidate_replicas]
        ranks = rank(candidates, _hint_of(pending_request), max_lead=self._max_lead)
        order = [index for indices in ranks for index in _two_of(indices, candidates)]
        if order:
            self._expect_at(candidate_replicas[order[0]].replica_id.unique_id)
        # Each alone: of several, Serve would take the one that its own count says is less loaded.
        return [[candidate_replicas[index]] for index in order]

    def _look_at(self, replica: RunningReplica) -> Candidate:
        stats = replica.routing_stats
        num_ongoing = self.replica_queue_len_cache.get(replica.replica_id)
        if num_sent := self._being_sent[replica.replica_id.unique_id]:
            num_ongoing = (num_ongoing or 0) + num_sent
        return Candidate(
            adapters=frozenset(stats.get(ADAPTERS, ())),
            node_id=replica.node_id,
            num_ongoing=num_ongoing,
            max_ongoing=replica.max_ongoing_requests,
            has_free_blocks=stats.get(FREE_BLOCKS, 1) > 0,
        )

    def _expect_at(self, replica: str) -> None:
        """Count a call where it is about to go, until Serve does so itself.

        Serve counts when it sends. Of a crowd that comes at once it routes many before it sends
        the first: all would see the same idle replica.
        """
        self._being_sent[replica] += 1
        asyncio.get_running_loop().call_soon(self._being_sent.subtract, [replica])


def _hint_of(pending_request: PendingRequest | None) -> RoutingHint:
    arguments: Sequence[Any] = pending_request.args if pending_request else ()
    hint = getattr(arguments[0], "routing_hint", None) if arguments else None
    return hint or RoutingHint()


def _two_of(indices: list[int], candidates: Sequence[Candidate]) -> list[int]:
    """Two at random, the less loaded first."""
    two = random.sample(indices, min(2, len(indices)))
    return sorted(two, key=lambda index: candidates[index].num_ongoing or 0)
