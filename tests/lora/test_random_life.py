"""Adapters, turns and memories come and go at random; a reference knows what must come of them."""

import random
from collections import Counter
from pathlib import Path

import pytest

from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.errors import AdapterError, LatentMASError
from tests.lora.stage import Stage, Ticket

NAMES = "abcdef"
NUM_ACTIONS = 400


class Life:
    """A stage and what is known of it from outside: names, turns under way, memories."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage = stage
        self.dice = random.Random(seed)
        self.known: dict[str, str] = {}
        self.pinned: set[str] = set()
        self.lost: set[str] = set()
        self.tickets: list[Ticket] = []
        self.memories: list[ResidentMemory] = []
        self.num: Counter[str] = Counter()

    def load(self) -> None:
        name = self.dice.choice(NAMES)
        is_pinned = self.dice.random() < 0.1
        rank, seed = self.dice.choice([2, 6, 10, 24]), self.dice.choice(["one", "other", name])
        is_taken = self.known.get(name) not in (None, f"{seed}-{rank}")
        try:
            digest = self.stage.load(name, rank=rank, seed=seed, is_pinned=is_pinned)
        except AdapterError as error:
            self.check_refusal(error, is_taken=is_taken, is_pinned=is_pinned)
            self.num["refused load"] += 1
            return
        assert not is_taken, "a name was given to another adapter"
        self.known[name] = digest
        (self.pinned.add if is_pinned else self.pinned.discard)(name)

    def check_refusal(self, error: AdapterError, *, is_taken: bool, is_pinned: bool) -> None:
        """A name that is taken is the reason, or else the room that pins need or leave."""
        assert error.param == "name" if is_taken else is_pinned or self.pinned, error

    def unload(self) -> None:
        if self.known:
            self.forget(self.dice.choice(sorted(self.known)))

    def forget(self, name: str) -> None:
        del self.known[name]
        self.pinned.discard(name)
        self.stage.adapters.unregister(name)

    def submit(self) -> None:
        names = self.dice.sample(sorted(self.known), min(len(self.known), self.dice.randint(0, 2)))
        if len({self.known[name] for name in names}) < len(names):
            return
        weights = dict.fromkeys(names, self.dice.choice([1.0, 1.0, 0.5]))
        memory = self.dice.choice(self.memories) if self.memories else None
        ticket = self.stage.submit(
            *names,
            adapters=self.stage.mix(**weights),
            num_tokens=self.dice.randint(1, 14),
            latent_steps=self.dice.choice([0, 0, 5]),
            max_tokens=self.dice.choice([0, 3, 20]),
            keeps_memory=self.dice.random() < 0.4,
            memory=memory if self.dice.random() < 0.4 else None,
            first_token=self.dice.choice([0, 0, 50]),
        )
        self.tickets.append(ticket)

    def abort(self) -> None:
        under_way = [ticket for ticket in self.tickets if not ticket.has_ended]
        if under_way:
            self.stage.abort(self.dice.choice(under_way))
            self.num["aborted"] += 1

    def abort_suspended(self) -> None:
        suspended = [t for t in self.tickets if t.sequence.is_suspended]
        if suspended:
            self.stage.abort(self.dice.choice(suspended))
            self.num["aborted while suspended"] += 1

    def unload_suspended(self) -> None:
        suspended = {digest for s in self.stage.scheduler.suspended for digest in s.mix.digests}
        names = sorted(name for name, digest in self.known.items() if digest in suspended)
        if names:
            self.forget(self.dice.choice(names))
            self.num["unloaded while suspended"] += 1

    def end_load(self) -> None:
        pending = self.stage.loader.pending
        if pending:
            index = self.dice.randrange(len(pending))
            fails = self.dice.random() < 0.15
            if fails:
                self.lost.add(pending[index][0].spec.digest)
            self.stage.loader.end(index, fails=fails)
            self.num["failed load" if fails else "load"] += 1

    def release(self) -> None:
        if self.memories:
            self.stage.release(self.memories.pop(self.dice.randrange(len(self.memories))))

    def step(self) -> None:
        self.stage.step()

    def look(self) -> None:
        """What has ended since: each turn got its end, once, and an error only for a reason."""
        self.stage.check()
        assert {spec.name: spec.digest for spec, _ in self.stage.adapters.listing()} == self.known
        for ticket in [ticket for ticket in self.tickets if ticket.has_ended]:
            self.tickets.remove(ticket)
            if not ticket.is_aborted:
                self.note(ticket)
        for digest, adapter in self.stage.adapters._adapters.items():
            pins = {name for name in self.pinned if self.known[name] == digest}
            assert adapter.pinned_by == pins

    def note(self, ticket: Ticket) -> None:
        ends = [e for e in ticket.events if e in (ticket.done, ticket.error)]
        assert len(ends) == 1, ends
        if ticket.done is None:
            self.num["error"] += 1
            assert self.is_explained(ticket), ticket.error
            return
        self.num["done"] += 1
        sampling = ticket.sequence.turn.sampling
        assert len(ticket.done.output_ids) == (sampling.max_tokens if sampling else 0)
        if ticket.done.memory is not None:
            self.memories.append(ticket.done.memory)

    def is_explained(self, ticket: Ticket) -> bool:
        """Its own adapter was lost, or too many or too large ones were asked for, or pins are."""
        error: LatentMASError | None = ticket.error
        assert error is not None
        if "is lost" in error.message:
            return any(digest in self.lost for digest in ticket.sequence.mix.digests)
        if "max_loaded_adapters is" in error.message:
            pinned = {self.known[name] for name in self.pinned}
            digests = pinned.union(ticket.sequence.mix.digests)
            return len(digests) > self.stage.adapters.max_loaded
        if "pinned" in error.message:
            return bool(self.pinned)
        return "taken by adapters" in error.message

    def end(self) -> None:
        """Everything that is under way ends, and nothing is held any more."""
        self.stage.run(*self.tickets)
        self.stage.loader.end_all()
        self.look()
        while self.memories:
            self.release()
        self.stage.assert_empty()


ACTIONS = {
    Life.load: 2,
    Life.unload: 1,
    Life.submit: 6,
    Life.abort: 1,
    Life.abort_suspended: 0.5,
    Life.unload_suspended: 0.5,
    Life.end_load: 4,
    Life.release: 2,
    Life.step: 12,
}


@pytest.mark.parametrize("seed", range(24))
def test_whatever_comes_and_goes_all_counts_and_rows_stay_right(
    tiny_llama: Path, seed: int
) -> None:
    dice = random.Random(seed)
    stage = Stage(
        tiny_llama,
        num_blocks=dice.choice([40, 70, 150]),
        max_loaded=dice.choice([1, 2, 4]),
        max_host=dice.choice([1, 3, 99]),
        max_num_seqs=dice.choice([2, 8]),
        max_num_batched_tokens=dice.choice([6, 40]),
    )
    stage.scheduler.slice_rows = dice.choice([1, 2, 8])
    life = Life(stage, seed)
    for _ in range(NUM_ACTIONS):
        (action,) = life.dice.choices(list(ACTIONS), list(ACTIONS.values()))
        action(life)
        life.look()
    life.end()
    assert life.num["done"] > 20
    assert life.num["load"] > 5
    if stage.adapters.max_loaded == 1:
        assert stage.scheduler.num_suspensions > 0
