"""Owns which KV block is free, shared or cached. Knows no tensors, sequences or positions.

A block is free (nobody refers to it), used (one or more references) or cached: free, but its
content can still be found by the hash of the tokens that lead to it, until it is handed out again.
Neighbouring blocks may be taken as a run, which stays where it is: adapters live in runs.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

PrefixKey = bytes


def prefix_keys(root: str, token_ids: Sequence[int], block_size: int) -> list[PrefixKey]:
    """One key per full block of ``token_ids``; equal keys mean equal tokens from the first on.

    ``root`` names everything else the content depends on: the model and the adapter.
    """
    keys: list[PrefixKey] = []
    key = hashlib.sha256(root.encode()).digest()
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        block = ",".join(map(str, token_ids[start : start + block_size]))
        key = hashlib.sha256(key + block.encode()).digest()
        keys.append(key)
    return keys


class BlockManager:
    """Reference counts of ``num_blocks`` blocks, and the prefix cache over those that are free."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._num_refs = [0] * num_blocks
        # Handed out from the front: blocks without content first, then the longest unused.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._key_to_block: dict[PrefixKey, int] = {}
        self._block_to_key: dict[int, PrefixKey] = {}
        self._in_run = [False] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._block_to_key)

    def num_refs(self, block_id: int) -> int:
        return self._num_refs[block_id]

    def num_blocks_for(self, num_slots: int) -> int:
        return -(-num_slots // self.block_size)

    def can_allocate(self, num_blocks: int) -> bool:
        return num_blocks <= self.num_free

    def allocate(self, num_blocks: int) -> list[int]:
        """Take blocks with one reference each; what was cached in them is forgotten."""
        assert self.can_allocate(num_blocks), (
            f"asked for {num_blocks} blocks, {self.num_free} of {self.num_blocks} are free"
        )
        block_ids = [self._free.popitem(last=False)[0] for _ in range(num_blocks)]
        for block_id in block_ids:
            self._forget(block_id)
            self._num_refs[block_id] = 1
        return block_ids

    def share(self, block_ids: Iterable[int]) -> None:
        """Add a reference to each block."""
        for block_id in block_ids:
            if self._num_refs[block_id] == 0:
                del self._free[block_id]
            self._num_refs[block_id] += 1

    def free(self, block_ids: Sequence[int]) -> None:
        """Drop a reference of each block; what nobody refers to becomes free, cached or not."""
        # Backwards: a cached prefix is forgotten from its end, since without its first block it
        # cannot be found at all.
        for block_id in reversed(block_ids):
            assert self._num_refs[block_id] > 0, f"block {block_id} is freed twice"
            self._num_refs[block_id] -= 1
            if self._num_refs[block_id] == 0:
                self._free[block_id] = None
                self._free.move_to_end(block_id, last=block_id in self._block_to_key)

    def find_run(self, num_blocks: int) -> int | None:
        """The first of ``num_blocks`` neighbours that no run holds, with the fewest in use.

        Among equals the last, so that runs gather at the end of the pool. None if there are none.
        """
        best, fewest = None, num_blocks + 1
        num_used = num_fixed = 0
        for end in range(self.num_blocks):
            num_used += self._num_refs[end] > 0
            num_fixed += self._in_run[end]
            if end >= num_blocks:
                num_used -= self._num_refs[end - num_blocks] > 0
                num_fixed -= self._in_run[end - num_blocks]
            if end >= num_blocks - 1 and num_fixed == 0 and num_used <= fewest:
                best, fewest = end - num_blocks + 1, num_used
        return best

    def allocate_run(self, start: int, num_blocks: int) -> dict[int, int]:
        """Take a run that ``find_run`` found; what is in use there moves to free blocks.

        Returns where to, by block: the caller copies the content and mends the tables, once.
        """
        assert self.can_allocate(num_blocks), (
            f"asked for a run of {num_blocks} blocks, {self.num_free} are free"
        )
        run = range(start, start + num_blocks)
        used = [block_id for block_id in run if self._num_refs[block_id] > 0]
        for block_id in run:
            if block_id not in used:
                del self._free[block_id]
                self._forget(block_id)
        moves = {block_id: self._move(block_id) for block_id in used}
        for block_id in run:
            self._num_refs[block_id] = 1
            self._in_run[block_id] = True
        return moves

    def free_run(self, start: int, num_blocks: int) -> None:
        run = range(start, start + num_blocks)
        for block_id in run:
            assert self._in_run[block_id], f"block {block_id} is in no run"
            self._in_run[block_id] = False
        self.free(run)

    def match_prefix(self, keys: Sequence[PrefixKey]) -> list[int]:
        """The blocks of the longest run of ``keys`` that is cached, each with a new reference."""
        block_ids: list[int] = []
        for key in keys:
            block_id = self._key_to_block.get(key)
            if block_id is None:
                break
            block_ids.append(block_id)
        self.share(block_ids)
        return block_ids

    def publish(self, block_id: int, key: PrefixKey) -> None:
        """Let a full block be found by ``key``; the first block published under a key stays."""
        if key not in self._key_to_block and block_id not in self._block_to_key:
            self._key_to_block[key] = block_id
            self._block_to_key[block_id] = key

    def check_integrity(self, expected_refs: int | None = None) -> None:
        """Raise AssertionError if the counts do not add up (``expected_refs``: of all blocks)."""
        num_referred = sum(count > 0 for count in self._num_refs)
        assert num_referred + self.num_free == self.num_blocks, (
            f"{num_referred} referred + {self.num_free} free != {self.num_blocks} blocks"
        )
        assert all(self._num_refs[block_id] == 0 for block_id in self._free), (
            "a block is free and referred to"
        )
        assert len(self._key_to_block) == len(self._block_to_key), (
            f"{len(self._key_to_block)} keys for {len(self._block_to_key)} cached blocks"
        )
        num_refs = sum(self._num_refs)
        assert expected_refs is None or num_refs == expected_refs, (
            f"{num_refs} references on blocks, but sequences and memories hold {expected_refs}"
        )

    def _move(self, block_id: int) -> int:
        """Another block takes over the references and the key of this one."""
        (target,) = self.allocate(1)
        self._num_refs[target] = self._num_refs[block_id]
        key = self._block_to_key.pop(block_id, None)
        if key is not None:
            self._block_to_key[target] = key
            self._key_to_block[key] = target
        return target

    def _forget(self, block_id: int) -> None:
        key = self._block_to_key.pop(block_id, None)
        if key is not None:
            del self._key_to_block[key]
