"""Whose turn it is: the kind that was served least, and within a kind the one that came first."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, cycle
from typing import Any

import pytest

from latentmas_core.engine.fair_queue import AGEING, HEAD_START_ROWS, FairQueue
from latentmas_core.engine.sequence import Kind

_ids = count()


@dataclass(eq=False)
class Waiting:
    """What the queue sees of a sequence."""

    kind: Kind
    sequence_id: int = field(default_factory=lambda: next(_ids))
    is_suspended: bool = False
    num_rows_before: int = 0


def enter(queue: FairQueue, *kinds: str) -> list[Any]:
    """One sequence per kind; "a+b" is one with two adapters."""
    sequences: list[Any] = [Waiting(tuple(kind.split("+"))) for kind in kinds]
    for sequence in sequences:
        queue.enter(sequence)
    return sequences


def take_all(queue: FairQueue, *, charge: int = 10) -> list[str]:
    """The kinds in the order of their turns; each start costs ``charge`` rows."""
    kinds = []
    for sequence in queue.in_turn():
        queue.take(sequence)
        queue.charge(sequence, charge)
        kinds.append("+".join(sequence.kind))
    return kinds


def test_one_kind_is_a_plain_queue() -> None:
    queue = FairQueue()
    sequences = enter(queue, "a", "a", "a")
    taken = []
    for sequence in queue.in_turn():
        queue.take(sequence)
        taken.append(sequence)
    assert taken == sequences
    assert len(queue) == 0


def test_a_crowd_of_one_kind_does_not_hold_up_another() -> None:
    queue = FairQueue()
    enter(queue, *"aaaaaa", "b", "b")
    assert take_all(queue) == [*"abab", *"aaaa"]


def test_who_was_served_much_waits_for_the_others() -> None:
    queue = FairQueue()
    a, _, _, _ = enter(queue, "a", "a", "b", "b")
    queue.charge(a, 25)
    assert take_all(queue) == [*"bb", *"aa"]


def test_kind_that_comes_back_has_saved_nothing_up() -> None:
    queue = FairQueue()
    (b,) = enter(queue, "b")
    queue.leave(b)
    a, *_ = enter(queue, "a", "a", "a")
    queue.charge(a, 1000)
    enter(queue, "b", "b", "b")
    assert take_all(queue) == [*"ababab"]


def test_kind_that_was_served_much_cannot_shed_it_by_leaving() -> None:
    queue = FairQueue()
    a, _ = enter(queue, "a", "b")
    queue.charge(a, 1000)
    queue.leave(a)
    enter(queue, "a", "b")
    assert take_all(queue) == [*"bba"]


def test_head_that_is_left_where_it_is_is_passed_over_with_its_kind() -> None:
    queue = FairQueue()
    enter(queue, "a", "a", "b")
    seen = []
    for sequence in queue.in_turn():
        seen.append(sequence.kind)
        if sequence.kind == ("b",):
            queue.take(sequence)
    assert seen == [("a",), ("b",)]
    assert [sequence.kind for sequence in queue] == [("a",), ("a",)]


def test_what_is_put_back_is_first_of_its_kind() -> None:
    queue = FairQueue()
    first, second = enter(queue, "a", "a")
    queue.take(first)
    queue.put_back(first)
    assert list(queue) == [first, second]
    queue.check_integrity([])


def suspend(queue: FairQueue, *sequences: Any) -> None:
    for sequence in sequences:
        queue.take(sequence)
        sequence.is_suspended = True
        queue.put_back(sequence)


def test_kind_that_waits_for_its_first_row_goes_before_one_that_goes_on() -> None:
    queue = FairQueue()
    a, b, c = enter(queue, *"abc")
    suspend(queue, a, c)
    queue.charge(b, HEAD_START_ROWS - 1)
    assert queue.first() is b
    assert take_all(queue) == [*"bac"]


def test_kind_that_goes_on_waits_no_longer_than_the_head_start() -> None:
    queue = FairQueue()
    a, b = enter(queue, *"ab")
    suspend(queue, a)
    queue.charge(b, HEAD_START_ROWS + 1)
    assert queue.first() is a
    assert take_all(queue) == [*"ab"]


def test_kind_with_both_has_the_head_start_and_goes_on_first() -> None:
    queue = FairQueue()
    a, b, new = enter(queue, *"aba")
    suspend(queue, a, b)
    queue.charge(a, 10)
    assert list(queue.in_turn()) == [a, b]
    assert list(queue)[:2] == [a, new]


def rows_until_first(waiting: str, newcomers: Iterator[str], *, num_rows: int) -> int:
    """Rows of a crowd that are computed before one of a kind that was served 30 more is the first.

    One of the crowd runs at a time, and another comes when it has ended.
    """
    queue = FairQueue()
    enter(queue, *[next(newcomers) for _ in range(6)])
    served, waits = enter(queue, waiting, waiting)
    queue.take(served)
    queue.charge(served, 30)
    total = 0
    while (first := queue.first()) is not waits:
        assert first is not None
        assert total < 100_000, "it starves"
        queue.take(first)
        queue.charge(first, num_rows)
        queue.leave(first)
        enter(queue, next(newcomers))
        total += num_rows
    return total


@pytest.mark.parametrize(
    ("waiting", "newcomers"),
    [
        ("a", cycle(["a+b", "a+c", "a+d", "a+e", "a+f", "a+g"])),
        ("a+b", cycle("ab")),
        ("a+b", cycle("abc")),
    ],
)
def test_composition_and_each_of_its_adapters_alone_do_not_hold_each_other_up(
    waiting: str, newcomers: Iterator[str]
) -> None:
    # Each of the others is served as much, and then a little.
    assert rows_until_first(waiting, newcomers, num_rows=7) <= 8 * (30 + 7)


def test_kinds_that_are_ever_new_hold_nobody_up_for_ever() -> None:
    ever_new = (f"a+{number}" for number in count())
    assert rows_until_first("a", ever_new, num_rows=7) <= 30 * AGEING + 7 * 7


def test_first_of_nobody_is_nobody() -> None:
    assert FairQueue().first() is None


def test_counts_follow_those_who_wait_and_run() -> None:
    queue = FairQueue()
    waiting, running = enter(queue, "a", "b")
    queue.take(running)
    queue.check_integrity([running])
    for sequence in (running, waiting):
        queue.leave(sequence)
    queue.check_integrity([])


def test_table_of_counters_does_not_grow_with_every_kind_there_ever_was() -> None:
    queue = FairQueue()
    (stays,) = enter(queue, "stays")
    queue.charge(stays, 10)
    for number in range(100):
        (passing,) = enter(queue, f"kind-{number}")
        queue.charge(passing, 5 * (number == 3))
        queue.leave(passing)
    assert set(queue._num_served) == {("stays",), ("kind-3",)}
    queue.leave(stays)
    assert queue._num_served == {}
