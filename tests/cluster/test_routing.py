"""Ranks of replicas, and the router of Serve around them with replicas that are not there."""

import asyncio
from collections import Counter
from types import SimpleNamespace

import pytest
from ray import cloudpickle
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
)
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest

from cluster.routing import Candidate, ResidencyRouter, RoutingHint, rank

GROUP = DeploymentID("thinkers", "latentmas")
MATH = RoutingHint(adapters=("math",), node_ids=("here",))


def candidate(*adapters, node="there", ongoing=0, most=10, has_free_blocks=True):
    return Candidate(frozenset(adapters), node, ongoing, most, has_free_blocks)


def test_ranks_are_both_then_adapter_then_memory_then_the_rest():
    candidates = [
        candidate(),
        candidate(node="here"),
        candidate("math", "law"),
        candidate("math", node="here"),
    ]
    assert rank(candidates, MATH) == [[3], [2], [1], [0]]


def test_replica_with_most_adapters_of_a_call_is_preferred():
    both = RoutingHint(adapters=("law", "math"))
    some, all_of_them, other = candidate("math"), candidate("math", "law"), candidate("code")
    assert rank([some, all_of_them, other], both) == [[1], [0, 2]]
    assert rank([some, other], both) == [[0], [1]]
    assert rank([other, other], both) == [[0, 1]]


def test_replica_that_is_full_comes_last_whatever_it_holds():
    candidates = [candidate("math", node="here", ongoing=10), candidate(ongoing=3)]
    assert rank(candidates, MATH) == [[1], [0]]


def test_preference_ends_where_the_replica_is_clearly_busier():
    for ongoing, ranks in ((4, [[0], [1]]), (5, [[0, 1]])):
        candidates = [candidate("math", ongoing=ongoing), candidate(ongoing=1)]
        assert rank(candidates, MATH, max_lead=3) == ranks


def test_preference_stays_when_all_are_equally_busy():
    candidates = [candidate("math", ongoing=9), candidate(ongoing=9)]
    assert rank(candidates, MATH, max_lead=3) == [[0], [1]]


def test_replica_without_free_blocks_is_not_preferred_while_others_have_some():
    full, other = candidate("math", has_free_blocks=False), candidate()
    assert rank([full, other], MATH) == [[0, 1]]
    assert rank([full, other._replace(has_free_blocks=False)], MATH) == [[0], [1]]


def test_replica_that_was_not_heard_of_counts_as_free():
    assert rank([candidate("math", ongoing=None), candidate()], MATH) == [[0], [1]]


def test_without_a_hint_all_are_equal():
    candidates = [candidate("math", node="here", ongoing=2), candidate(), candidate("law")]
    assert rank(candidates, RoutingHint()) == [[0, 1, 2]]


def test_no_replicas_are_no_ranks():
    assert rank([], MATH) == []


class FakeReplica:
    """As much of Serve's ``RunningReplica`` as a router looks at. ``num_probes`` of its queue."""

    def __init__(self, name, *adapters, node="there", most=10, free_blocks=100):
        self.replica_id = ReplicaID(name, GROUP)
        self.routing_stats = {"adapters": list(adapters), "free_blocks": free_blocks}
        self.node_id = node
        self.max_ongoing_requests = most
        self.num_ongoing = 0
        self.num_probes = 0
        self.probed = asyncio.Condition()

    async def get_queue_len(self, *, deadline_s):
        async with self.probed:
            self.num_probes += 1
            self.probed.notify_all()
        return self.num_ongoing

    async def wait_for_probes(self, number):
        async with self.probed:
            await asyncio.wait_for(self.probed.wait_for(lambda: self.num_probes >= number), 10)


class Routing:
    """A router over fake replicas; ``route`` sends a call and keeps it there until ``finish``."""

    def __init__(self, *replicas, max_lead=3):
        self.router = ResidencyRouter(
            deployment_id=GROUP,
            handle_source=DeploymentHandleSource.REPLICA,
            self_node_id="here",
            use_replica_queue_len_cache=True,
            prefer_local_node_routing=True,
            initial_backoff_s=0.001,
            max_backoff_s=0.01,
        )
        self.router.initialize_state(max_lead=max_lead)
        self.replicas = {replica.replica_id: replica for replica in replicas}
        self.router.update_replicas(list(replicas))

    def start(self, argument=None, *, request_id="r"):
        """A call on its way, as Serve makes them: all of one HTTP request share its id."""
        metadata = RequestMetadata(request_id=request_id, internal_request_id=request_id)
        args = [] if argument is None else [argument]
        pending = PendingRequest(args=args, kwargs={}, metadata=metadata)
        return self.router._choose_replica_for_request(pending)

    async def route(self, argument=None, **options):
        # Not wait_for: Serve sends as soon as it has a replica, without another task in between.
        async with asyncio.timeout(10):
            replica = await self.start(argument, **options)
        replica.num_ongoing += 1
        self.router.on_send_request(replica.replica_id)
        return replica

    def finish(self, replica):
        replica.num_ongoing -= 1
        self.router.decrement_queue_len_cache(replica.replica_id)


def call(*adapters, nodes=()):
    return SimpleNamespace(routing_hint=RoutingHint(adapters, nodes))


async def test_calls_go_where_their_adapter_is():
    other, resident = FakeReplica("other"), FakeReplica("resident", "math")
    routing = Routing(other, resident)
    for _ in range(20):
        replica = await routing.route(call("math"))
        assert replica is resident
        routing.finish(replica)


async def test_calls_go_where_their_memory_is():
    far, near = FakeReplica("far"), FakeReplica("near", node="here")
    routing = Routing(far, near)
    for _ in range(20):
        replica = await routing.route(call(nodes=("elsewhere", "here")))
        assert replica is near
        routing.finish(replica)


async def test_calls_overflow_before_they_would_wait():
    resident, other = FakeReplica("resident", "math"), FakeReplica("other")
    routing = Routing(resident, other, max_lead=3)
    chosen = [await routing.route(call("math")) for _ in range(12)]
    assert [one is resident for one in chosen[:4]] == [True] * 4
    assert Counter(one.replica_id.unique_id for one in chosen) == {"resident": 8, "other": 4}


async def test_crowd_that_comes_at_once_overflows_too():
    resident, other = FakeReplica("resident", "math", most=99), FakeReplica("other", most=99)
    routing = Routing(resident, other, max_lead=3)
    await asyncio.gather(*(routing.route(call("math")) for _ in range(12)))
    assert (resident.num_ongoing, other.num_ongoing) == (8, 4)


async def test_crowd_without_a_hint_is_spread():
    replicas = [FakeReplica("first", most=99), FakeReplica("second", most=99)]
    routing = Routing(*replicas)
    await asyncio.gather(*(routing.route() for _ in range(12)))
    assert [replica.num_ongoing for replica in replicas] == [6, 6]


async def test_full_replica_is_not_even_asked():
    resident, other = FakeReplica("resident", "math", most=2), FakeReplica("other")
    routing = Routing(resident, other, max_lead=100)
    for _ in range(2):
        assert await routing.route(call("math")) is resident
    num_probes = resident.num_probes
    for _ in range(2):
        assert await routing.route(call("math")) is other
    assert resident.num_probes == num_probes


async def test_call_waits_only_when_all_are_full_and_takes_the_first_room():
    resident, other = FakeReplica("resident", "math", most=1), FakeReplica("other", most=1)
    routing = Routing(resident, other)
    for _ in range(2):
        await routing.route(call("math"))
    waiting = asyncio.create_task(routing.route(call("math")))
    await other.wait_for_probes(4)  # it asks again and again
    assert not waiting.done()
    routing.finish(other)
    assert await asyncio.wait_for(waiting, 10) is other


async def test_calls_without_a_hint_are_spread():
    replicas = [
        FakeReplica("first", "math"),
        FakeReplica("second"),
        FakeReplica("third", node="here"),
    ]
    routing = Routing(*replicas, max_lead=0)
    for argument in (None, "text", SimpleNamespace(routing_hint=None)):
        for _ in range(10):
            await routing.route(argument)
    assert all(replica.num_ongoing == 10 for replica in replicas)


async def test_calls_of_one_http_request_are_all_routed():
    replicas = [FakeReplica("first", "math", most=100), FakeReplica("second", "law", most=100)]
    routing = Routing(*replicas)
    hints = [call("math"), call("law"), call("math")]
    chosen = await asyncio.gather(*(routing.route(hint, request_id="same") for hint in hints))
    assert len(chosen) == 3


async def test_new_stats_of_a_replica_are_seen():
    first, second = FakeReplica("first", "math"), FakeReplica("second")
    routing = Routing(first, second)
    routing.finish(await routing.route(call("math")))
    first.routing_stats, second.routing_stats = second.routing_stats, first.routing_stats
    assert await routing.route(call("math")) is second


async def test_replica_that_has_not_reported_yet_is_used():
    silent = FakeReplica("silent")
    silent.routing_stats = {}
    assert await Routing(silent).route(call("math")) is silent


def test_router_travels_by_value():
    config = RequestRouterConfig(request_router_class="cluster.routing:ResidencyRouter")
    router = config.get_request_router_class()
    assert router.__name__ == "ResidencyRouter"
    assert len(cloudpickle.dumps(router)) < 20_000


@pytest.mark.parametrize("name", ["max_led"])
async def test_misspelt_argument_of_the_router_is_refused_by_name(name):
    with pytest.raises(TypeError, match=name):
        Routing(FakeReplica("one")).router.initialize_state(**{name: 3})
