"""Who waits for an adapter and for how long, step by step: no model, loads end when told."""

from pathlib import Path

import pytest

from latentmas_core.engine.scheduler import SLICE_ROWS
from latentmas_core.errors import AdapterError
from tests.lora.stage import Stage, Ticket


def load_all(stage: Stage, names: str, *, rank: int = 8) -> None:
    for name in names:
        stage.load(name, rank=rank)


def use(stage: Stage, *names: str) -> None:
    ticket = stage.submit(*names, max_tokens=1)
    stage.run(ticket)
    assert ticket.done is not None


# --- places ---------------------------------------------------------------------------------------


def test_longest_unused_is_evicted_first(tiny_llama: Path) -> None:
    stage = Stage(tiny_llama, max_loaded=3)
    load_all(stage, "abcdef")
    for name in "abcabd":  # c was used longest ago
        use(stage, name)
    assert stage.evicted == ["c"]
    assert stage.loaded() == ["a", "b", "d"]
    for name in "aef":
        use(stage, name)
    assert stage.evicted == ["c", "b", "d"]
    assert stage.loaded() == ["a", "e", "f"]


def test_end_of_a_turn_is_a_use(tiny_llama: Path) -> None:
    stage = Stage(tiny_llama, max_loaded=2)
    load_all(stage, "abc")
    long = stage.submit("a", max_tokens=9)
    stage.run(stage.submit("b", max_tokens=1))
    stage.run(long)
    use(stage, "c")
    assert stage.evicted == ["b"]


def test_twice_as_many_adapters_as_places_all_get_their_turn(tiny_llama: Path) -> None:
    stage = Stage(tiny_llama, max_loaded=3, max_num_seqs=4)
    load_all(stage, "abcdef")
    tickets = [stage.submit(*name, max_tokens=4) for name in [*"abcdef", ""] * 4]
    stage.run(*tickets)
    assert all(ticket.done for ticket in tickets)
    assert stage.scheduler.num_suspensions == 0, "they are short"
    assert stage.adapters.num_loads == 3 + len(stage.evicted)
    # Turns of one adapter that wait together run together: it is not loaded for each of them.
    assert stage.adapters.num_loads <= 3 * 6
    stage.assert_empty()


def test_adapter_in_use_is_never_evicted(tiny_llama: Path) -> None:
    stage = Stage(tiny_llama, max_loaded=1)
    load_all(stage, "ab")
    first, second = stage.submit("a", max_tokens=SLICE_ROWS), stage.submit("b", max_tokens=1)
    while first.done is None:
        stage.step()
        stage.loader.end_all()
        assert second.done is None
        assert stage.evicted == []
    stage.run(second)
    assert stage.evicted == ["a"]


def test_composition_takes_several_places_at_once(tiny_llama: Path) -> None:
    stage = Stage(tiny_llama, max_loaded=2)
    load_all(stage, "abcd")
    pairs = [stage.submit(*pair, max_tokens=5) for pair in ("ab", "cd", "bc", "da")]
    singles = [stage.submit(name, max_tokens=5) for name in "abcd"]
    stage.run(*pairs, *singles)
    assert all(ticket.done for ticket in pairs + singles)


def test_composition_that_can_never_have_its_places_is_refused_at_once(
    tiny_llama: Path,
) -> None:
    stage = Stage(tiny_llama, max_loaded=3)
    load_all(stage, "abc")
    stage.load("pinned", is_pinned=True)
    stage.loader.end_all()
    running = stage.submit(max_tokens=50)
    stage.step()
    refused = stage.submit("a", "b", "c", max_tokens=1)
    assert isinstance(refused.error, AdapterError), "it would wait until nobody else runs"
    assert "3" in refused.error.message
    assert running.error is None
    fits = stage.submit("a", "pinned", "b", max_tokens=1)
    stage.run(fits, running)
    assert fits.done is not None
    assert running.done is not None


def test_pin_is_refused_while_one_that_waits_needs_the_place(tiny_llama: Path) -> None:
    stage = Stage(tiny_llama, max_loaded=2)
    load_all(stage, "abc")
    waiting = stage.submit("a", "b", max_tokens=1)
    with pytest.raises(AdapterError, match="max_loaded_adapters is 2"):
        stage.load("c", is_pinned=True)
    assert stage.adapters.find("c").is_pinned is False
    stage.run(waiting)
    assert waiting.done is not None
    stage.load("c", is_pinned=True)
    stage.loader.end_all()
    assert "c" in stage.loaded()


def test_pin_that_splits_the_pool_ends_a_wait_with_an_error(tiny_llama: Path) -> None:
    """Enough blocks, but no run of them is long enough beside the pinned one."""
    stage = Stage(tiny_llama, num_blocks=32, max_loaded=4)
    for index in range(2):
        stage.load(f"wide {index}", rank=18)  # 9 blocks, behind the pinned one
        use(stage, f"wide {index}")
        stage.load(f"pinned {index}", rank=4, is_pinned=True)
        stage.loader.end_all()
    stage.load("long", rank=24)
    waiting, base = stage.submit("long", max_tokens=1), stage.submit(max_tokens=1)
    stage.run(waiting, base)
    assert isinstance(waiting.error, AdapterError)
    assert "needs 12 blocks for its adapter(s), each in one piece" in waiting.error.message
    assert "beside the pinned pinned 0, pinned 1" in waiting.error.message
    assert base.done is not None


def test_pinned_adapter_that_is_loaded_again_counts_once(tiny_llama: Path) -> None:
    stage = Stage(tiny_llama, num_blocks=40, max_loaded=3)  # 20 blocks for adapters
    stage.load("a", rank=24, is_pinned=True)  # 12 of them
    stage.loader.end_all()
    running = stage.submit("a", max_tokens=90, num_tokens=4)  # 24 blocks beside it
    assert running.error is None
    stage.load("a", rank=24, is_pinned=True)
    stage.load("again", rank=24, seed="a", is_pinned=True)
    stage.load("a", rank=24)
    assert [spec.name for spec in stage.adapters.pinned()] == ["a"]
    stage.run(running)
    assert running.done is not None


def test_pin_of_an_adapter_that_a_turn_runs_with_takes_no_further_room(tiny_llama: Path) -> None:
    stage = Stage(tiny_llama, num_blocks=40, max_loaded=1)
    stage.load("a", rank=24)
    running = stage.submit("a", max_tokens=90, num_tokens=4)
    stage.step()
    stage.load("a", rank=24, is_pinned=True)
    stage.run(running)
    assert running.done is not None


@pytest.mark.parametrize(
    ("before", "there", "other"),
    [(30, 4, 32), (20, 24, 24), (20, 24, 22)],  # ranks, twice the number of blocks
)
def test_composition_moves_its_own_adapter_out_of_the_way_of_its_other_one(
    tiny_llama: Path, before: int, there: int, other: int
) -> None:
    """The one that is there lies where no run on either side is long enough for the other."""
    stage = Stage(tiny_llama, num_blocks=32, max_loaded=3)
    stage.load("before", rank=before)
    use(stage, "before")
    stage.load("there", rank=there)
    use(stage, "there")
    stage.adapters.unregister("before")
    stage.load("other", rank=other)
    both = stage.submit("there", "other", max_tokens=3, num_tokens=4)
    stage.run(both)
    assert both.done is not None, both.error
    assert stage.evicted == ["there"]
    stage.assert_empty()


def test_adapter_that_was_only_pinned_is_kept_for_nobody(tiny_llama: Path) -> None:
    stage = Stage(tiny_llama, max_loaded=1)
    stage.load("a", is_pinned=True)
    stage.loader.end_all()
    stage.load("a")
    stage.assert_empty()
    use(stage, "a")
    stage.load("b")
    use(stage, "b")
    assert stage.evicted == ["a"]


# --- nobody starves -------------------------------------------------------------------------------


class Traffic:
    """Clients that ask again and again: at any time ``num`` turns of each name are under way."""

    def __init__(self, stage: Stage, *names: str, num: int = 2, **fields: object) -> None:
        self.stage = stage
        self.wanted = [name for name in names for _ in range(num)]
        self.fields = {"max_tokens": 5} | fields
        self.tickets: dict[int, Ticket] = {}
        self.num_done = 0

    def refill(self) -> None:
        for client, name in enumerate(self.wanted):
            ticket = self.tickets.get(client)
            if ticket is None or ticket.has_ended:
                self.num_done += ticket is not None and ticket.done is not None
                self.tickets[client] = self.stage.submit(*filter(None, [name]), **self.fields)

    def run_beside(self, ticket: Ticket, *, load_steps: int, max_steps: int = 600) -> int:
        """Steps until ``ticket`` has ended; every load takes ``load_steps``."""
        waited = 0
        for num_steps in range(max_steps):
            if ticket.has_ended:
                return num_steps
            self.refill()
            self.stage.step()
            waited = waited + 1 if self.stage.loader.pending else 0
            if waited > load_steps:
                self.stage.loader.end()
                waited = 0
        raise AssertionError(f"starved for {max_steps} steps, {self.num_done} others were answered")


def test_traffic_for_resident_adapters_does_not_starve_another(tiny_llama: Path) -> None:
    stage = Stage(tiny_llama, max_loaded=2, num_blocks=200)
    load_all(stage, "abc")
    traffic = Traffic(stage, "a", "b", num=3)
    traffic.run_beside(stage.submit("a", max_tokens=3), load_steps=2)
    traffic.run_beside(stage.submit("c", max_tokens=3), load_steps=2)


def test_traffic_for_resident_adapters_does_not_starve_a_composition(
    tiny_llama: Path,
) -> None:
    stage = Stage(tiny_llama, max_loaded=3, num_blocks=200)
    load_all(stage, "abcde")
    traffic = Traffic(stage, "a", "b", "c", num=2)
    traffic.run_beside(stage.submit("a", max_tokens=3), load_steps=2)
    traffic.run_beside(stage.submit("d", "e", max_tokens=3), load_steps=2)


def test_traffic_of_ever_new_weights_does_not_starve_another(tiny_llama: Path) -> None:
    stage = Stage(tiny_llama, max_loaded=2, max_num_seqs=2)
    load_all(stage, "ab")
    stage.run(stage.submit("a", max_tokens=9))
    served = stage.submit("a", max_tokens=30)
    weights = (1.0 + number / 1000 for number in range(1000))
    crowd: list[Ticket] = []
    for num_steps in range(100):
        if num_steps == 20:
            waiting = stage.submit("a", max_tokens=2)
        crowd = [ticket for ticket in crowd if not ticket.has_ended]
        while len(crowd) < 6:
            crowd.append(stage.submit(adapters=stage.mix(b=next(weights)), max_tokens=9))
        stage.step()
        stage.loader.end_all()
    assert served.done is not None
    assert waiting.done is not None


def test_base_traffic_does_not_starve_an_adapter_where_turns_are_short_of_places(
    tiny_llama: Path,
) -> None:
    stage = Stage(tiny_llama, max_num_seqs=2)
    stage.load("a")
    traffic = Traffic(stage, "", num=6)
    traffic.run_beside(stage.submit(max_tokens=3), load_steps=2)
    traffic.run_beside(stage.submit("a", max_tokens=3), load_steps=2)


@pytest.mark.parametrize("load_steps", [0, 1, 3, 7])
def test_base_traffic_that_fills_the_pool_does_not_starve_an_adapter(
    tiny_llama: Path, load_steps: int
) -> None:
    """The turns under way would take any number of blocks; the adapter takes half of them."""
    stage = Stage(tiny_llama, num_blocks=24, max_num_seqs=20)
    stage.load("a", rank=24)
    traffic = Traffic(stage, "", num=12, max_tokens=14, num_tokens=3)
    traffic.run_beside(stage.submit(max_tokens=3, num_tokens=3), load_steps=load_steps)
    for _ in range(3):
        stage.adapters.evict_one()
        traffic.run_beside(
            stage.submit("a", max_tokens=20, num_tokens=5), load_steps=load_steps, max_steps=300
        )


@pytest.mark.parametrize("load_steps", [0, 3])
def test_adapters_that_do_not_fit_together_take_turns(tiny_llama: Path, load_steps: int) -> None:
    stage = Stage(tiny_llama, num_blocks=24, max_loaded=4, max_num_seqs=20)
    load_all(stage, "abcd", rank=20)
    traffic = Traffic(stage, "a", "b", "", num=3, max_tokens=9)
    for name in "cdcd":
        ticket = stage.submit(name, max_tokens=9)
        traffic.run_beside(ticket, load_steps=load_steps)


# --- one budget of blocks -------------------------------------------------------------------------


def test_composition_takes_the_room_of_idle_memories_and_not_of_its_own_adapters(
    tiny_llama: Path,
) -> None:
    stage = Stage(tiny_llama, num_blocks=40)
    load_all(stage, "ab", rank=24)  # 12 blocks each
    thinkers = [
        stage.submit(num_tokens=30, keeps_memory=True, first_token=100 * x) for x in range(4)
    ]
    stage.run(*thinkers)
    assert stage.stepper.blocks.num_free == 8
    both = stage.submit("a", "b", max_tokens=3)
    stage.run(both, max_steps=50)
    assert both.done is not None
    assert stage.evicted == []
    assert stage.stepper.memories.num_offloads > 0
    for thinker in thinkers:
        assert thinker.done is not None
        stage.release(thinker.done.memory)
    stage.assert_empty()


def test_idle_adapters_go_before_memories_and_only_as_many_as_needed(
    tiny_llama: Path,
) -> None:
    stage = Stage(tiny_llama, num_blocks=40, max_loaded=3)
    load_all(stage, "abc", rank=16)  # 8 blocks each
    for name in "abc":
        use(stage, name)
    stage.run(stage.submit(num_tokens=60, latent_steps=1))
    assert stage.evicted == []
    stage.run(stage.submit(num_tokens=60, latent_steps=10))
    assert stage.evicted == ["a"]
    assert stage.stepper.memories.num_offloads == 0


def test_growing_turn_takes_the_room_of_an_idle_adapter_before_another_turn_gives_way(
    tiny_llama: Path,
) -> None:
    stage = Stage(tiny_llama, num_blocks=24)
    stage.load("a", rank=16)
    use(stage, "a")
    tickets = [stage.submit(max_tokens=30, num_tokens=4) for _ in range(2)]
    stage.run(*tickets)
    assert stage.evicted == ["a"]
    assert stage.scheduler.num_preemptions == 0


def test_growing_turn_waits_for_the_room_of_a_load_that_nobody_waits_for(
    tiny_llama: Path,
) -> None:
    stage = Stage(tiny_llama, num_blocks=24)
    stage.load("a", rank=24)  # 12 blocks
    growing = stage.submit(max_tokens=70, num_tokens=4)  # 19 blocks in the end
    stage.step()
    left = stage.submit("a", max_tokens=1)
    stage.step()
    stage.abort(left)
    while stage.step():
        pass
    assert not growing.has_ended
    assert len(stage.loader.pending) == 1
    stage.run(growing)
    assert growing.done is not None
    stage.assert_empty()
