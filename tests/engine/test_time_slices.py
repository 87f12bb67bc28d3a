"""Who gives its adapter's place to another, when, and how it goes on: counts only, no model."""

from typing import cast

import pytest

from latentmas_core.engine.scheduler import PATIENCE_STEPS, SLICE_ROWS, Scheduler
from latentmas_core.engine.sequence import Sequence
from latentmas_core.lora.cache import AdapterCache
from tests.engine.scheduling import (
    add_all,
    create_scheduler,
    is_finished,
    register,
    run_until,
    step,
    with_adapters,
)

LONG = 60  # tokens


def run_steps(scheduler: Scheduler, num_steps: int) -> None:
    for _ in range(num_steps):
        step(scheduler)


def start(scheduler: Scheduler, *names: str, **fields: object) -> list[Sequence]:
    """Long answers under way, one for each of ``names``."""
    sequences = [with_adapters(name, max_tokens=LONG, **fields) for name in names]
    add_all(scheduler, *sequences)
    run_until(scheduler, lambda: all(sequence in scheduler.running for sequence in sequences))
    return sequences


def suspended_kinds(scheduler: Scheduler) -> set[str]:
    return {"".join(sequence.kind) for sequence in scheduler.suspended}


# --- when -----------------------------------------------------------------------------------------


def test_first_that_waits_gets_the_place_of_one_that_has_run_for_a_while() -> None:
    scheduler = create_scheduler(num_places=1)
    (a,) = start(scheduler, "a")
    run_until(scheduler, lambda: a.num_gained >= SLICE_ROWS)
    b = with_adapters("b", max_tokens=3)
    scheduler.add(b)
    run_steps(scheduler, PATIENCE_STEPS - 1)
    assert a in scheduler.running, "a place may become free by itself"
    step(scheduler)
    assert scheduler.suspended == [a]
    step(scheduler)
    assert scheduler.running == [b]


def test_sequence_that_has_just_started_is_not_suspended() -> None:
    scheduler = create_scheduler(num_places=1)
    (a,) = start(scheduler, "a")
    scheduler.add(with_adapters("b", max_tokens=3))
    while not scheduler.suspended:
        step(scheduler)
    assert len(a.output_ids) == SLICE_ROWS > PATIENCE_STEPS


def test_prompt_is_not_suspended_however_many_steps_it_takes() -> None:
    scheduler = create_scheduler(num_places=1, max_num_batched_tokens=4)
    a = with_adapters("a", num_tokens=80, max_tokens=LONG)
    add_all(scheduler, a, with_adapters("b", max_tokens=3))
    run_until(scheduler, lambda: bool(scheduler.suspended))
    assert scheduler.suspended == [a]
    assert len(a.output_ids) == SLICE_ROWS


def test_latent_steps_count_as_rows_that_it_ran_for() -> None:
    scheduler = create_scheduler(num_places=1)
    a = with_adapters("a", latent_steps=30, max_tokens=5)
    add_all(scheduler, a, with_adapters("b", max_tokens=3))
    run_until(scheduler, lambda: bool(scheduler.suspended))
    assert (len(a.latents), a.output_ids) == (SLICE_ROWS, [])
    run_until(scheduler, lambda: not scheduler.has_work)
    assert (len(a.latents), len(a.output_ids)) == (30, 5)


@pytest.mark.parametrize("num_places", [3, 5])
def test_nobody_is_suspended_where_places_are_enough(num_places: int) -> None:
    scheduler = create_scheduler(num_places=num_places, max_num_seqs=4)
    add_all(scheduler, *(with_adapters(name, max_tokens=LONG) for name in "abcabcabc"))
    add_all(scheduler, *(with_adapters("", max_tokens=LONG) for _ in range(4)))
    run_until(scheduler, lambda: not scheduler.has_work)
    assert scheduler.num_suspensions == 0


def test_place_that_becomes_free_by_itself_is_taken_and_nobody_is_suspended() -> None:
    scheduler = create_scheduler(num_places=2)
    a, b = (with_adapters(name, max_tokens=SLICE_ROWS) for name in "ab")
    c = with_adapters("c", max_tokens=3)
    add_all(scheduler, a, b, c)
    run_until(scheduler, lambda: is_finished(c))
    assert scheduler.num_suspensions == 0


# --- who ------------------------------------------------------------------------------------------


def test_most_served_adapter_gives_its_place_with_all_its_sequences() -> None:
    scheduler = create_scheduler(num_places=2)
    first, b, second = start(scheduler, "a", "b", "a")
    run_steps(scheduler, SLICE_ROWS)
    scheduler.add(with_adapters("c", max_tokens=3))
    run_until(scheduler, lambda: scheduler.num_suspensions > 0)
    assert scheduler.suspended == [first, second]
    assert b in scheduler.running


def test_most_served_one_that_has_just_gone_on_is_passed_over() -> None:
    scheduler = create_scheduler(num_places=2)
    a, b = start(scheduler, "a", "b")
    scheduler.waiting.charge(a, 1000)
    run_steps(scheduler, SLICE_ROWS)
    a.begin_slice()
    scheduler.add(with_adapters("c", max_tokens=3))
    run_until(scheduler, lambda: scheduler.num_suspensions > 0)
    assert scheduler.suspended == [b]


def test_pinned_adapter_keeps_its_place() -> None:
    scheduler = create_scheduler(num_places=2)
    register(cast(AdapterCache, scheduler.adapters), "a", is_pinned=True)
    a, b = start(scheduler, "a", "b")
    scheduler.waiting.charge(a, 1000)
    run_steps(scheduler, SLICE_ROWS)
    scheduler.add(with_adapters("c", max_tokens=3))
    run_until(scheduler, lambda: scheduler.num_suspensions > 0)
    assert scheduler.suspended == [b]


def test_adapter_that_only_compositions_have_is_as_much_served_as_they_are() -> None:
    scheduler = create_scheduler(num_places=3)
    both, c = start(scheduler, "ab", "c")
    scheduler.waiting.charge(both, 100)
    run_steps(scheduler, SLICE_ROWS)
    scheduler.add(with_adapters("d", max_tokens=3))
    run_until(scheduler, lambda: scheduler.num_suspensions > 0)
    assert scheduler.suspended == [both]
    assert c in scheduler.running


def test_composition_gets_as_many_places_as_it_needs() -> None:
    scheduler = create_scheduler(num_places=2)
    start(scheduler, "a", "b")
    both = with_adapters("cd", max_tokens=3)
    scheduler.add(both)
    run_until(scheduler, lambda: both in scheduler.running)
    assert suspended_kinds(scheduler) == {"a", "b"}
    run_until(scheduler, lambda: not scheduler.has_work)


def test_adapter_that_would_have_to_be_read_again_is_drained_and_not_suspended() -> None:
    scheduler = create_scheduler(num_places=1)
    cache = cast(AdapterCache, scheduler.adapters)
    (a,) = start(scheduler, "a")
    cache._on_host.pop("a").packed = None
    b = with_adapters("b", max_tokens=3)
    scheduler.add(b)
    run_until(scheduler, lambda: is_finished(a))
    run_until(scheduler, lambda: is_finished(b))
    assert scheduler.num_suspensions == 0


# --- how it goes on -------------------------------------------------------------------------------


def test_suspended_sequence_goes_on_with_its_blocks_where_it_stopped() -> None:
    scheduler = create_scheduler(num_places=1)
    (a,) = start(scheduler, "a", num_tokens=11)
    scheduler.add(with_adapters("b", max_tokens=3))
    run_until(scheduler, lambda: a.is_suspended)
    block_table, num_computed = list(a.block_table), a.num_computed
    assert (len(block_table), a.berths) == (-(-num_computed // 4), [])
    run_until(scheduler, lambda: a in scheduler.running)
    assert a.block_table[: len(block_table)] == block_table
    assert a.num_computed == num_computed + 1
    assert (a.num_preemptions, scheduler.num_preemptions) == (0, 0)
    run_until(scheduler, lambda: not scheduler.has_work)
    assert len(a.output_ids) == LONG
    assert scheduler.blocks.num_used == 0


def test_suspended_sequences_of_one_adapter_go_on_in_the_order_they_came() -> None:
    scheduler = create_scheduler(num_places=1)
    sequences = start(scheduler, "a", "a", "a")
    later = with_adapters("a", max_tokens=3)
    add_all(scheduler, with_adapters("b", max_tokens=3))
    run_until(scheduler, lambda: bool(scheduler.suspended))
    scheduler.add(later)
    assert [s for s in scheduler.waiting if s.kind == ("a",)] == [*sequences, later]
    run_until(scheduler, lambda: bool(scheduler.running) and not scheduler.suspended)
    assert scheduler.running == [*sequences, later]


def test_place_is_for_whom_it_was_made_even_if_the_suspended_were_served_less() -> None:
    scheduler = create_scheduler(num_places=1)
    (a,) = start(scheduler, "a")
    b = with_adapters("b", max_tokens=LONG)
    scheduler.add(b)
    scheduler.waiting.charge(b, 500)
    run_until(scheduler, lambda: b in scheduler.running)
    assert scheduler.suspended == [a]
    assert scheduler.num_suspensions == 1


def test_place_among_the_running_ones_is_left_for_whom_the_adapter_is_loaded() -> None:
    scheduler = create_scheduler(num_places=2, max_num_seqs=2)
    a, b = start(scheduler, "a", "b")
    scheduler.waiting.charge(a, 100)
    waiting, c = with_adapters("b", max_tokens=LONG), with_adapters("c", max_tokens=LONG)
    scheduler.waiting.charge(b, 50)
    add_all(scheduler, c, waiting)
    run_until(scheduler, lambda: scheduler.num_suspensions > 0)
    assert (scheduler.suspended, scheduler.running) == ([a], [b])
    step(scheduler)
    assert scheduler.running == [b, c]


def test_suspended_sequences_take_no_place_among_the_running_ones() -> None:
    scheduler = create_scheduler(num_places=1, max_num_seqs=2)
    start(scheduler, "a", "a")
    start(scheduler, "b", "b")
    assert len(scheduler.suspended) == 2


def test_first_that_leaves_before_its_adapter_came_is_not_waited_for() -> None:
    scheduler = create_scheduler(num_places=1)
    (a,) = start(scheduler, "a")
    b = with_adapters("b", max_tokens=3)
    scheduler.add(b)
    run_until(scheduler, lambda: bool(scheduler.suspended))
    scheduler.remove(b)
    run_until(scheduler, lambda: is_finished(a))
    assert not scheduler.has_work


def test_cancelled_while_suspended_gives_its_blocks_back() -> None:
    scheduler = create_scheduler(num_places=1)
    a, _ = start(scheduler, "a", "a")
    scheduler.add(with_adapters("b", max_tokens=3))
    run_until(scheduler, lambda: a.is_suspended)
    num_used, num_own = scheduler.blocks.num_used, len(a.block_table)
    scheduler.remove(a)
    assert scheduler.blocks.num_used == num_used - num_own > 0
    assert a not in scheduler.waiting
    run_until(scheduler, lambda: not scheduler.has_work)
    assert scheduler.blocks.num_used == 0


# --- when blocks are short ------------------------------------------------------------------------


def test_nobody_is_suspended_for_one_that_would_have_no_blocks() -> None:
    scheduler = create_scheduler(num_places=1, num_blocks=18)
    (a,) = start(scheduler, "a")  # up to 17 blocks
    b = with_adapters("b", num_tokens=60)  # 15 blocks
    scheduler.add(b)
    run_until(scheduler, lambda: is_finished(a))
    assert scheduler.num_suspensions == 0
    run_until(scheduler, lambda: not scheduler.has_work)


def test_blocks_of_a_suspended_sequence_go_before_those_of_a_running_one() -> None:
    scheduler = create_scheduler(num_places=1, num_blocks=30, max_num_batched_tokens=100)
    (a,) = start(scheduler, "a", num_tokens=30)
    older, younger = start(scheduler, "b", "b", num_tokens=4)
    scheduler.waiting.charge(a, 1000)
    assert a.is_suspended
    run_until(scheduler, lambda: scheduler.num_preemptions > 0)
    assert (a.num_preemptions, a.is_suspended, a.block_table, a.num_computed) == (1, False, [], 0)
    assert scheduler.running == [older, younger]
    num_known = a.num_known
    run_until(scheduler, lambda: a in scheduler.running)
    assert (a.num_computed, a.num_known) == (num_known, num_known + 1)
    run_until(scheduler, lambda: not scheduler.has_work)
    assert [len(s.output_ids) for s in (a, older, younger)] == [LONG] * 3


def test_blocks_are_taken_of_the_suspended_one_that_would_go_on_last() -> None:
    scheduler = create_scheduler(num_places=1, num_blocks=60)
    a, b = start(scheduler, "a")[0], start(scheduler, "b")[0]
    start(scheduler, "c", num_tokens=30)
    assert scheduler.suspended == [a, b] or scheduler.suspended == [b, a]
    scheduler.waiting.charge(a, 100)
    scheduler.make_room(scheduler.blocks.num_free + 1)
    assert (a.num_preemptions, b.num_preemptions) == (1, 0)
    scheduler.make_room(scheduler.blocks.num_free + 1)
    assert b.num_preemptions == 1
    assert scheduler.suspended == []


def test_first_that_waits_takes_the_blocks_of_a_suspended_one_and_no_other_does() -> None:
    scheduler = create_scheduler(num_places=1, num_blocks=24)
    (a,) = start(scheduler, "a", num_tokens=30)
    start(scheduler, "b", num_tokens=4)
    large = with_adapters("", num_tokens=50, latent_steps=1)
    another = with_adapters("b", num_tokens=50, latent_steps=1)
    assert scheduler.suspended == [a]
    scheduler.waiting.charge(a, 100)
    add_all(scheduler, another, large)
    scheduler.waiting.charge(large, -1000)
    step(scheduler)
    assert large in scheduler.running
    assert another not in scheduler.running
    assert a.num_preemptions == 1


# --- nobody starves -------------------------------------------------------------------------------


class Client:
    """Asks for one kind again and again; knows how long an answer stood still at most."""

    def __init__(self, names: str, first_token: int) -> None:
        self.names = names
        self.first_token = first_token
        self.sequence: Sequence | None = None
        self.num_answers = -1
        self.num_steps_still = 0
        self.max_steps_still = 0

    def ask(self, scheduler: Scheduler) -> None:
        if self.sequence is None or is_finished(self.sequence):
            self.num_answers += 1
            self.sequence = with_adapters(self.names, max_tokens=25, first_token=self.first_token)
            scheduler.add(self.sequence)

    def look(self, scheduled: list[tuple[Sequence, int]]) -> None:
        is_served = any(sequence is self.sequence for sequence, _ in scheduled)
        self.num_steps_still = 0 if is_served else self.num_steps_still + 1
        self.max_steps_still = max(self.max_steps_still, self.num_steps_still)


@pytest.mark.parametrize(("num_places", "max_num_seqs"), [(1, 2), (1, 4), (2, 4), (1, 20), (3, 20)])
def test_adapters_that_are_demanded_without_end_are_served_equally(
    num_places: int, max_num_seqs: int
) -> None:
    scheduler = create_scheduler(num_places=num_places, max_num_seqs=max_num_seqs, num_blocks=2000)
    clients = [Client(names, 30 * x) for x, names in enumerate([*"abcdef", ""] * 2)]
    for _ in range(4000):
        for client in clients:
            client.ask(scheduler)
        scheduled = step(scheduler)
        for client in clients:
            client.look(scheduled)
    num_answers = [client.num_answers for client in clients if client.names]
    assert min(num_answers) > 10
    assert max(num_answers) <= 1.2 * min(num_answers) + 1
    assert max(client.max_steps_still for client in clients) < 600
    assert scheduler.num_suspensions > 100


@pytest.mark.parametrize("num_blocks", [16, 30])
def test_all_end_where_places_and_blocks_are_short(num_blocks: int) -> None:
    scheduler = create_scheduler(num_places=2, num_blocks=num_blocks)
    sequences = [
        with_adapters(names, num_tokens=9, max_tokens=30, first_token=20 * x)
        for x, names in enumerate(["a", "b", "cd", "e", "", "ae", "f", "b", "c", "a"])
    ]
    add_all(scheduler, *sequences)
    run_until(scheduler, lambda: not scheduler.has_work)
    assert [len(sequence.output_ids) for sequence in sequences] == [30] * 10
    assert scheduler.num_suspensions > 0
    assert scheduler.blocks.num_used == 0
