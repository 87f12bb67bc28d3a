"""Where replicas find room: packing, whole cards, one node, and what is said when there is none."""

import random
from collections import defaultdict

import pytest

from cluster.placement import Demand, Node, Placement, place


def seats(placement: Placement, group: str) -> list[tuple[str, tuple[int, ...]]]:
    assert placement.shortages == ()
    return [(seat.node, seat.cards) for seat in placement.seats_of(group)]


def message(placement: Placement) -> str:
    (shortage,) = placement.shortages
    return shortage.message


def test_fractions_are_packed_on_one_card():
    slices = Demand("slices", num_replicas=4, num_cpus=1, num_gpus=0.25)
    placed = place([Node("a", 8, 2)], [slices])
    assert seats(placed, "slices") == [("a", (0,))] * 4
    assert {seat.share for seat in placed.seats} == {0.25}


def test_ten_tenths_fit_one_card_whatever_floats_add_up_to():
    assert sum([0.1] * 10) != 1
    tenths = Demand("tenths", num_replicas=10, num_cpus=0.1, num_gpus=0.1)
    assert seats(place([Node("a", 1, 1)], [tenths]), "tenths") == [("a", (0,))] * 10


def test_replica_with_a_whole_card_is_seated_before_fractions_whatever_the_order():
    small = Demand("small", num_replicas=2, num_cpus=1, num_gpus=0.5)
    whole = Demand("whole", num_replicas=1, num_cpus=1, num_gpus=1)
    for demands in ([small, whole], [whole, small]):
        placed = place([Node("a", 8, 2)], demands)
        assert seats(placed, "whole") == [("a", (0,))]
        assert seats(placed, "small") == [("a", (1,)), ("a", (1,))]


def test_replica_with_several_cards_sits_on_one_node():
    wide = Demand("wide", num_replicas=1, num_cpus=1, num_gpus=4)
    assert seats(place([Node("a", 8, 2), Node("b", 8, 4)], [wide]), "wide") == [("b", (0, 1, 2, 3))]


def test_cards_of_two_nodes_do_not_add_up_for_one_replica():
    wide = Demand("wide", num_replicas=1, num_cpus=1, num_gpus=4)
    placed = place([Node("a", 8, 2), Node("b", 8, 2)], [wide])
    assert placed.seats == ()
    assert "1 x (num_cpus 1, num_gpus 4 on one node); there is room for 0" in message(placed)


def test_fraction_never_straddles_two_cards():
    halves = Demand("halves", num_replicas=3, num_cpus=1, num_gpus=0.6)
    placed = place([Node("a", 8, 2)], [halves])
    assert [seat.cards for seat in placed.seats] == [(0,), (1,)]
    assert "there is room for 2" in message(placed)


def test_replica_without_a_gpu_has_no_card():
    (seat,) = place([Node("a", 2, 1)], [Demand("plain", 1, num_cpus=2)]).seats
    assert (seat.cards, seat.share) == ((), 0.0)


def test_second_node_is_used_when_the_first_has_no_cpus_left():
    plain = Demand("plain", num_replicas=3, num_cpus=1)
    assert seats(place([Node("a", 2), Node("b", 2)], [plain]), "plain") == [
        ("a", ()),
        ("a", ()),
        ("b", ()),
    ]


def test_spread_replicas_go_to_the_node_with_the_fewest():
    plain = Demand("plain", num_replicas=4, num_cpus=1)
    placed = place([Node("a", 8), Node("b", 8)], [plain], spreads=True)
    assert [seat.node for seat in placed.seats] == ["a", "b", "a", "b"]


def test_spread_fractions_leave_no_whole_card_where_packed_ones_do():
    nodes = [Node("a", 8, 1), Node("b", 8, 1)]
    demands = [Demand("halves", 2, num_cpus=1, num_gpus=0.5), Demand("whole", 1, 1, num_gpus=1)]
    assert place(nodes, demands).shortages == ()
    assert "group 'whole'" in message(place(nodes, demands, spreads=True))


def test_shortage_names_the_group_what_it_asks_what_is_left_and_a_remedy():
    big = Demand("big", num_replicas=2, num_cpus=3, num_gpus=0.75)
    told = message(place([Node("a", 8, 1)], [big]))
    assert told == (
        "group 'big' asks for 2 x (num_cpus 3, num_gpus 0.75); there is room for 1. Left are "
        "a: 5 CPUs, GPUs 0.25. Lower what a group takes, or add a node"
    )


def test_shortage_on_many_nodes_stays_short():
    big = Demand("big", num_replicas=1, num_cpus=99)
    told = message(place([Node(f"n{i}", 1) for i in range(100)], [big]))
    assert "n3: 1 CPUs, GPUs none; and 96 more" in told
    assert "n4" not in told


def test_no_nodes_have_room_for_nothing():
    assert "Left are no nodes" in message(place([], [Demand("any", 1, num_cpus=1)]))


def test_group_of_no_replica_needs_no_room():
    placed = place([Node("a", 1)], [Demand("idle", num_replicas=0, num_cpus=99)])
    assert (placed.seats, placed.shortages) == ((), ())


def test_memory_that_is_promised_twice_is_refused_by_card_and_groups():
    greedy = Demand("greedy", num_replicas=1, num_cpus=1, num_gpus=0.5, memory_share=0.7)
    modest = Demand("modest", num_replicas=1, num_cpus=1, num_gpus=0.5, memory_share=0.5)
    told = message(place([Node("a", 8, 1)], [greedy, modest]))
    assert "memory of GPU 0 of a is promised 1.2 times (greedy 0.7, modest 0.5); at most 1" in told


def test_memory_shares_that_add_up_to_one_are_no_overcommitment():
    third = Demand("third", num_replicas=10, num_cpus=0.1, num_gpus=0.1, memory_share=0.1)
    assert place([Node("a", 1, 1)], [third]).shortages == ()


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_given_away_twice(seed):
    generator = random.Random(seed)
    nodes = [Node(f"n{i}", generator.randint(1, 16), generator.randint(0, 8)) for i in range(4)]
    demands = [
        Demand(
            f"g{i}",
            num_replicas=generator.randint(1, 6),
            num_cpus=generator.choice([0.1, 0.5, 1, 3]),
            num_gpus=generator.choice([0, 0.1, 0.3, 0.5, 1, 2, 4]),
        )
        for i in range(8)
    ]
    placed = place(nodes, demands)
    demand_of = {demand.group: demand for demand in demands}
    cpus: dict[str, float] = defaultdict(float)
    shares: dict[tuple[str, int], float] = defaultdict(float)
    for seat in placed.seats:
        cpus[seat.node] += demand_of[seat.group].num_cpus
        for card in seat.cards:
            shares[seat.node, card] += seat.share
        taken = len(seat.cards) * seat.share
        assert taken == pytest.approx(demand_of[seat.group].num_gpus)
    node_of = {node.name: node for node in nodes}
    assert all(total <= node_of[name].num_cpus + 1e-9 for name, total in cpus.items())
    assert all(total <= 1 + 1e-9 for total in shares.values())
    assert all(card < node_of[name].num_gpus for name, card in shares)
    short = {shortage.group for shortage in placed.shortages}
    for demand in demands:
        has_all = len(placed.seats_of(demand.group)) == demand.num_replicas
        assert has_all != (demand.group in short), demand
