"""A hand-over copies a memory once on each side: counted by what torch is asked to write."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.latent.codec import KVLayout, PackedSegments, pack, unpack
from latentmas_core.latent.memory import Memory, Placement
from latentmas_core.latent.segment import SegmentTensors
from tests.engine.factories import SHAPE
from tests.engine.rooms import Room, create_room, create_tensors, end, load, start
from tests.latent.factories import create_segment

LAYOUT = KVLayout(SHAPE.num_layers, SHAPE.num_kv_heads, SHAPE.head_dim, SHAPE.hidden_size)
SEGMENTS = (
    create_segment("planner", num_tokens=6, num_latents=3),
    create_segment("critic", first_position=9, num_tokens=5, num_latents=2),
)
# Those whose results are views, or numbers about slots rather than rows.
_COPYING = ("copy_", "_to_copy", "clone", "cat", "stack", "index", "index_select", "gather")


class CopyCounter(TorchDispatchMode):
    """Sums the floating-point elements that operations write anew."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "index_copy_":
            written = args[3]
        elif name in _COPYING:
            written = result
        else:
            return result
        if written.is_floating_point():
            self.num_elements += written.numel()
        return result


@contextmanager
def counting() -> Iterator[CopyCounter]:
    with CopyCounter() as counter:
        yield counter


def pack_all(room: Room, memory: ResidentMemory) -> PackedSegments:
    return pack(
        memory.memory.segments,
        lambda segment, content: room.store.copy_out(memory, segment, content),
        LAYOUT,
        dtype=room.pool.dtype,
    )


def payload() -> int:
    return sum(LAYOUT.num_elements(segment, has_kv=True) for segment in SEGMENTS)


def test_memory_in_blocks_is_packed_in_one_copy() -> None:
    room = create_room()
    memory = load(room, *SEGMENTS)
    with counting() as copies:
        packed = pack_all(room, memory)
    assert copies.num_elements == packed.buffer.numel() == payload()


def test_memory_is_loaded_into_blocks_in_one_copy_and_read_without_another() -> None:
    sender = create_room()
    contents = unpack(pack_all(sender, load(sender, *SEGMENTS)))
    receiver = create_room()
    with counting() as copies:
        memory = receiver.store.load(Memory(tuple(map(Placement, SEGMENTS))), contents)
        reader = start(receiver, memory)
    assert copies.num_elements == payload()
    end(receiver, reader)
    receiver.store.release(memory)


@pytest.mark.parametrize("is_staged", [False, True])
def test_what_is_packed_is_what_is_there(is_staged: bool) -> None:
    room = create_room()
    memory = load(room, *SEGMENTS)
    if is_staged:
        assert room.store.make_room(room.blocks.num_blocks)
        assert memory.block_table is None
    contents = unpack(pack_all(room, memory))
    for segment, expected in zip(SEGMENTS, room.store.export(memory, SEGMENTS), strict=True):
        assert_equal(contents[segment.segment_id], expected)


def test_segment_that_was_moved_is_packed_at_its_own_positions() -> None:
    room = create_room()
    segment = SEGMENTS[0]
    tensors = create_tensors(segment)
    moved = Memory((Placement(segment, shift=7),))
    memory = room.store.load(moved, {segment.segment_id: tensors})
    (content,) = unpack(pack_all(room, memory)).values()
    assert content.kv is not None
    assert tensors.kv is not None
    torch.testing.assert_close(content.kv.keys, tensors.kv.keys)
    assert torch.equal(content.kv.values, tensors.kv.values)


def assert_equal(actual: SegmentTensors, expected: SegmentTensors) -> None:
    assert torch.equal(actual.latents, expected.latents)
    assert actual.kv is not None
    assert expected.kv is not None
    assert torch.equal(actual.kv.keys, expected.kv.keys)
    assert torch.equal(actual.kv.values, expected.kv.values)
