"""Every memory of a scope is released or handed on, exactly once."""

import asyncio

import pytest

from latentmas_core.pipelines.ownership import OwnedMemories


class Releases:
    def __init__(self, *, failing=()):
        self.released = []
        self.failing = failing

    async def __call__(self, memory):
        self.released.append(memory)
        if memory in self.failing:
            raise RuntimeError(memory)
        await asyncio.sleep(0)


async def test_what_is_left_is_released_at_the_end():
    releases = Releases()
    async with OwnedMemories(releases) as owned:
        for memory in ("a", "b", "c"):
            owned.own(memory)
        await owned.release("a")
        assert owned.hand_on("b") == "b"
        assert len(owned) == 1
    assert releases.released == ["a", "c"]


async def test_no_memory_is_owned_and_released_freely():
    releases = Releases()
    async with OwnedMemories(releases) as owned:
        owned.own(None)
        await owned.release(None)
        assert owned.hand_on(None) is None
        assert None not in owned
    assert releases.released == []


async def test_failing_release_does_not_keep_the_others():
    releases = Releases(failing=("b",))

    async def hold() -> None:
        async with OwnedMemories(releases) as owned:
            for memory in ("a", "b", "c"):
                owned.own(memory)

    with pytest.raises(RuntimeError, match="b"):
        await hold()
    assert sorted(releases.released) == ["a", "b", "c"]


async def test_scope_that_is_cancelled_twice_still_releases_everything():
    releases = Releases()

    async def hold():
        async with OwnedMemories(releases) as owned:
            for memory in ("a", "b", "c"):
                owned.own(memory)
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    for _ in range(2):
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(releases.released) == ["a", "b", "c"]


async def test_giving_a_memory_twice_is_a_bug():
    async with OwnedMemories(Releases()) as owned:
        owned.own("a")
        with pytest.raises(AssertionError, match="twice"):
            owned.own("a")
