"""Blocks are lent, shared, cached and handed out again, and the counts always add up."""

import random
from collections import Counter

import pytest

from latentmas_core.engine.block_manager import BlockManager, prefix_keys


def create_manager(num_blocks: int = 6) -> BlockManager:
    return BlockManager(num_blocks, block_size=4)


def create_cached(manager: BlockManager, *names: str) -> list[int]:
    """Free blocks whose content can be found under the given keys."""
    block_ids = manager.allocate(len(names))
    for block_id, name in zip(block_ids, names, strict=True):
        manager.publish(block_id, name.encode())
    manager.free(block_ids)
    return block_ids


# --- keys -----------------------------------------------------------------------------------------


def test_only_full_blocks_have_a_key() -> None:
    assert [len(prefix_keys("m", range(n), 4)) for n in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]


def test_equal_prefixes_have_equal_keys() -> None:
    assert prefix_keys("m", range(12), 4) == prefix_keys("m", range(14), 4)


def test_key_depends_on_every_token_before_it() -> None:
    one, other = prefix_keys("m", [1, 2, 3, 4], 2), prefix_keys("m", [9, 2, 3, 4], 2)
    assert one[0] != other[0]
    assert one[1] != other[1]


def test_key_depends_on_the_root() -> None:
    assert prefix_keys("m", range(4), 4) != prefix_keys("m/adapter", range(4), 4)


def test_tokens_are_not_confused_by_their_digits() -> None:
    assert prefix_keys("m", [1, 23], 2) != prefix_keys("m", [12, 3], 2)


# --- references -----------------------------------------------------------------------------------


def test_slots_are_rounded_up_to_blocks() -> None:
    assert [create_manager().num_blocks_for(n) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


def test_allocated_blocks_are_distinct_and_used() -> None:
    manager = create_manager()
    block_ids = manager.allocate(4)
    assert len(set(block_ids)) == 4
    assert (manager.num_used, manager.num_free) == (4, 2)
    assert manager.can_allocate(2)
    assert not manager.can_allocate(3)
    manager.check_integrity(4)


def test_allocating_more_than_is_free_is_our_bug_and_takes_nothing() -> None:
    manager = create_manager()
    manager.allocate(4)
    with pytest.raises(AssertionError, match="asked for 3 blocks, 2 of 6 are free"):
        manager.allocate(3)
    assert manager.num_free == 2


def test_shared_block_stays_until_its_last_reference_is_dropped() -> None:
    manager = create_manager()
    block_ids = manager.allocate(2)
    manager.share(block_ids)
    manager.free(block_ids)
    assert manager.num_used == 2
    manager.check_integrity(2)
    manager.free(block_ids)
    assert manager.num_used == 0
    manager.check_integrity(0)


def test_freeing_twice_is_our_bug() -> None:
    manager = create_manager()
    block_ids = manager.allocate(1)
    manager.free(block_ids)
    with pytest.raises(AssertionError, match="is freed twice"):
        manager.free(block_ids)


def test_integrity_names_both_counts_of_references() -> None:
    manager = create_manager()
    manager.share(manager.allocate(2))
    with pytest.raises(AssertionError, match=r"4 references on blocks.*hold 3"):
        manager.check_integrity(3)


def test_integrity_notices_a_block_that_is_lost() -> None:
    manager = create_manager()
    manager._free.popitem()
    with pytest.raises(AssertionError, match=r"0 referred \+ 5 free != 6 blocks"):
        manager.check_integrity()


# --- prefix cache ---------------------------------------------------------------------------------


def test_published_block_is_found_while_it_is_used() -> None:
    manager = create_manager()
    (block_id,) = manager.allocate(1)
    manager.publish(block_id, b"a")
    assert manager.match_prefix([b"a"]) == [block_id]
    manager.check_integrity(2)


def test_published_block_is_found_after_it_was_freed() -> None:
    manager = create_manager()
    block_ids = create_cached(manager, "a", "b")
    assert (manager.num_free, manager.num_cached) == (6, 2)
    assert manager.match_prefix([b"a", b"b"]) == block_ids
    assert manager.num_used == 2
    manager.check_integrity(2)


def test_match_ends_at_the_first_key_that_is_not_cached() -> None:
    manager = create_manager()
    first, *_ = create_cached(manager, "a", "c")
    assert manager.match_prefix([b"a", b"b", b"c"]) == [first]
    assert manager.match_prefix([b"b", b"c"]) == []
    manager.check_integrity(1)


def test_blocks_without_content_are_handed_out_before_cached_ones() -> None:
    manager = create_manager()
    cached = create_cached(manager, "a", "b")
    others = manager.allocate(2)
    manager.free(others)
    assert set(manager.allocate(4)).isdisjoint(cached)
    assert manager.num_cached == 2


def test_cached_block_that_was_longest_unused_is_forgotten_first() -> None:
    manager = create_manager(num_blocks=3)
    for name in ("a", "b", "c"):
        create_cached(manager, name)
    manager.free(manager.match_prefix([b"a"]))
    manager.allocate(1)
    assert manager.match_prefix([b"b"]) == []
    assert len(manager.match_prefix([b"c"])) == 1
    assert len(manager.match_prefix([b"a"])) == 1


def test_end_of_a_prefix_is_forgotten_before_its_beginning() -> None:
    manager = create_manager(num_blocks=3)
    block_ids = create_cached(manager, "a", "ab", "abc")
    manager.allocate(1)
    assert manager.match_prefix([b"a", b"ab", b"abc"]) == block_ids[:2]


def test_block_is_forgotten_when_it_is_handed_out_again() -> None:
    manager = create_manager(num_blocks=1)
    create_cached(manager, "a")
    manager.allocate(1)
    assert manager.num_cached == 0
    assert manager.match_prefix([b"a"]) == []
    manager.check_integrity(1)


def test_first_block_published_under_a_key_stays() -> None:
    manager = create_manager()
    first, second = manager.allocate(2)
    manager.publish(first, b"a")
    manager.publish(second, b"a")
    manager.publish(first, b"b")
    assert manager.match_prefix([b"a"]) == [first]
    assert manager.match_prefix([b"b"]) == []
    manager.check_integrity(3)


# --- a random life, against a reference that only counts ------------------------------------------


class NaiveBlocks:
    """What a manager must agree with: who refers to what, what lies where, and since when."""

    def __init__(self, num_blocks: int) -> None:
        self.refs: Counter[int] = Counter()
        self.content: dict[int, bytes] = {}
        self.unused_since = dict.fromkeys(range(num_blocks), 0)
        self.clock = 0

    @property
    def num_free(self) -> int:
        return len(self.unused_since)

    def take(self, block_ids: list[int]) -> None:
        for block_id in block_ids:
            self.refs[block_id] += 1
            self.unused_since.pop(block_id, None)

    def drop(self, block_ids: list[int]) -> None:
        for block_id in reversed(block_ids):
            self.refs[block_id] -= 1
            if self.refs[block_id] == 0:
                self.clock += 1
                self.unused_since[block_id] = self.clock

    def next_victims(self, num_blocks: int) -> set[int]:
        """The cached blocks that must be forgotten when so many are allocated."""
        cached = sorted(
            (since, block_id)
            for block_id, since in self.unused_since.items()
            if block_id in self.content
        )
        num_empty = len(self.unused_since) - len(cached)
        return {block_id for _, block_id in cached[: max(num_blocks - num_empty, 0)]}

    def find(self, keys: list[bytes]) -> list[int]:
        places = {key: block_id for block_id, key in self.content.items()}
        found: list[int] = []
        for key in keys:
            if key not in places:
                break
            found.append(places[key])
        return found


@pytest.mark.parametrize("seed", range(8))
def test_random_life_agrees_with_the_naive_reference(seed: int) -> None:
    choices = random.Random(seed)
    num_blocks = choices.choice([3, 8, 25])
    manager, naive = BlockManager(num_blocks, 4), NaiveBlocks(num_blocks)
    tables: list[list[int]] = []
    keys = [bytes([number]) for number in range(12)]

    def allocate() -> None:
        num_wanted = choices.randint(1, num_blocks)
        assert manager.can_allocate(num_wanted) is (num_wanted <= naive.num_free)
        if num_wanted > naive.num_free:
            return
        victims = naive.next_victims(num_wanted)
        block_ids = manager.allocate(num_wanted)
        assert len(set(block_ids)) == num_wanted
        assert all(naive.refs[block_id] == 0 for block_id in block_ids)
        assert {block_id for block_id in block_ids if block_id in naive.content} == victims
        for block_id in victims:
            del naive.content[block_id]
        naive.take(block_ids)
        tables.append(block_ids)

    def share() -> None:
        if tables:
            table = choices.choice(tables)
            part = table[: choices.randint(1, len(table))]
            manager.share(part)
            naive.take(part)
            tables.append(list(part))

    def free() -> None:
        if tables:
            table = tables.pop(choices.randrange(len(tables)))
            manager.free(table)
            naive.drop(table)

    def publish() -> None:
        if tables:
            block_id, key = choices.choice(choices.choice(tables)), choices.choice(keys)
            manager.publish(block_id, key)
            if block_id not in naive.content and key not in naive.content.values():
                naive.content[block_id] = key

    def match() -> None:
        wanted = choices.sample(keys, choices.randint(1, 3))
        found = manager.match_prefix(wanted)
        assert found == naive.find(wanted)
        naive.take(found)
        if found:
            tables.append(found)

    for _ in range(600):
        choices.choice([allocate, share, free, free, publish, publish, match])()
        assert manager.num_free == naive.num_free
        assert manager.num_used == num_blocks - naive.num_free
        assert manager.num_cached == len(naive.content)
        manager.check_integrity(sum(map(len, tables)))


# --- runs -----------------------------------------------------------------------------------------


def test_run_goes_to_the_end_of_an_empty_pool() -> None:
    manager = create_manager(10)
    assert manager.find_run(4) == 6
    assert manager.allocate_run(6, 4) == {}
    assert (manager.num_free, manager.find_run(6), manager.find_run(7)) == (6, 0, None)
    manager.free_run(6, 4)
    assert manager.num_free == 10
    manager.check_integrity(0)


def test_run_goes_where_the_fewest_blocks_are_in_use() -> None:
    manager = create_manager(8)
    blocks = manager.allocate(8)
    manager.free([block for block in blocks if block not in (1, 5, 6)])
    assert manager.find_run(3) == 2
    assert manager.find_run(4) == 2  # one in use, as behind 0 and 1; behind 4 there are two


def test_what_is_in_the_way_moves_with_its_references_and_its_key() -> None:
    manager = create_manager(6)
    blocks = manager.allocate(6)
    manager.publish(4, b"prefix")
    manager.share([4])
    manager.free([0, 1, 2, 3])
    moves = manager.allocate_run(3, 3)
    assert set(moves) == {4, 5}
    assert set(moves.values()) < {0, 1, 2}
    assert manager.num_refs(moves[4]) == 2
    assert manager.match_prefix([b"prefix"]) == [moves[4]]
    assert [manager.num_refs(block) for block in (3, 4, 5)] == [1, 1, 1]
    assert len(blocks) == 6
    manager.check_integrity()


def test_cached_block_in_a_run_is_forgotten() -> None:
    manager = create_manager(3)
    (cached,) = create_cached(manager, "a")
    manager.allocate_run(cached, 1)
    assert manager.match_prefix([b"a"]) == []


def test_runs_do_not_move_for_each_other() -> None:
    manager = create_manager(6)
    manager.allocate_run(2, 2)
    assert manager.find_run(3) is None
    assert manager.find_run(2) == 4
    with pytest.raises(AssertionError, match="in no run"):
        manager.free_run(1, 2)


def test_random_runs_beside_blocks_add_up() -> None:
    manager, dice = create_manager(40), random.Random(5)
    owned: dict[int, int] = dict.fromkeys(manager.allocate(8), 0)
    runs: list[tuple[int, int]] = []
    for _ in range(500):
        size = dice.randint(1, 6)
        if dice.random() < 0.5 and runs:
            manager.free_run(*runs.pop(dice.randrange(len(runs))))
        elif manager.can_allocate(size) and (start := manager.find_run(size)) is not None:
            moves = manager.allocate_run(start, size)
            owned = dict.fromkeys((moves.get(block, block) for block in owned), 0)
            runs.append((start, size))
        in_runs = {block for start, size in runs for block in range(start, start + size)}
        assert not in_runs & owned.keys()
        manager.check_integrity(len(owned) + len(in_runs))
