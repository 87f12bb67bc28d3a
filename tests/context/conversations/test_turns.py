"""Turns: whole or not at all, one after the other, and what each is told of those before."""

import asyncio
import operator
import threading
from contextlib import suppress

import pytest
from sqlalchemy import select

from latentmas_core.context.conversations import turn_queue
from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.context.conversations.conversations import Conversations
from latentmas_core.context.conversations.tables import tickets
from latentmas_core.errors import ConfigError, ConflictError, NotFoundError
from tests.context.conversations.answers import make_result, said, take_turn

SOON_S = 30.0  # far more than anything here takes
BRIEF_LEASE_S = 0.2


class LeftError(Exception):
    pass


@pytest.fixture
async def opened(url):
    """Makes what another process would have: all of its own, over the same database."""
    made = []

    def open_one(**options):
        made.append(Conversations(ConversationsConfig(url=url, **options)))
        return made[-1]

    yield open_one
    for one in made:
        await one.close()


async def questions_of(conversations, tenant, conversation_id="mine"):
    page = await conversations.store.show(tenant, conversation_id)
    return [turn.question for turn in page.turns]


async def test_first_turn_makes_the_conversation_and_gives_it_a_title(conversations, tenant):
    async with conversations.turn(tenant, None, "Why is\nthe sky blue?") as turn:
        assert (turn.history, turn.num_left_out) == ((), 0)
        stored = await turn.finish(make_result("It scatters."))
    page = await conversations.store.show(tenant, turn.conversation_id)
    assert page.turns == (stored,)
    assert page.conversation.title == "Why is the sky blue?"


async def test_turn_is_told_what_was_said_before(conversations, tenant):
    for i in range(3):
        await take_turn(conversations, tenant, "mine", f"q{i}", f"a{i}")
    async with conversations.turn(tenant, "mine", "q3") as turn:
        assert said(turn.history) == ["q0", "a0", "q1", "a1", "q2", "a2"]
        assert turn.num_left_out == 0


async def test_history_keeps_to_the_budget_and_says_what_it_left_out(conversations, tenant):
    for i in range(3):
        await take_turn(conversations, tenant, "mine", f"q{i}", f"a{i}")
    options = {"max_history_tokens": 10, "count_tokens": lambda text: 1}
    async with conversations.turn(tenant, "mine", "q3", **options) as turn:
        assert said(turn.history) == ["q2", "a2"]
        assert turn.num_left_out == 2


async def test_tokens_of_history_are_counted_beside_the_event_loop(conversations, tenant):
    counted_in = set()

    def count_tokens(text):
        counted_in.add(threading.get_ident())
        return 1

    await take_turn(conversations, tenant, "mine", "q0", "a0")
    async with conversations.turn(tenant, "mine", "q1", count_tokens=count_tokens):
        assert counted_in
        assert threading.get_ident() not in counted_in


async def test_no_more_turns_are_read_than_the_config_allows(opened, tenant):
    few = opened(max_history_turns=2)
    for i in range(4):
        await take_turn(few, tenant, "mine", f"q{i}", f"a{i}")
    async with few.turn(tenant, "mine", "q4") as turn:
        assert said(turn.history) == ["q2", "a2", "q3", "a3"]
        assert turn.num_left_out == 2


async def test_system_prompt_of_the_first_turn_stays_unless_a_turn_has_its_own(
    conversations, tenant
):
    for given, told in [("Be brief.", "Be brief."), (None, "Be brief."), ("Rhyme.", "Rhyme.")]:
        async with conversations.turn(tenant, "mine", "Why?", system_prompt=given) as turn:
            assert turn.system_prompt == told
            await turn.finish(make_result("So."))
    page = await conversations.store.show(tenant, "mine")
    assert page.conversation.system_prompt == "Be brief."


@pytest.mark.parametrize("leaving", [LeftError, asyncio.CancelledError])
async def test_turn_that_ends_early_leaves_the_conversation_as_it_was(
    conversations, tenant, leaving
):
    await take_turn(conversations, tenant, "mine", "q0")
    before = await conversations.store.show(tenant, "mine")
    with pytest.raises(leaving):
        async with conversations.turn(tenant, "mine", "q1"):
            raise leaving
    assert await conversations.store.show(tenant, "mine") == before
    await take_turn(conversations, tenant, "mine", "q2")
    assert await questions_of(conversations, tenant) == ["q0", "q2"]


async def test_first_turn_that_ends_early_leaves_no_conversation(conversations, tenant):
    async def nobody_is_shown_it():
        assert (await conversations.store.list(tenant)).data == ()
        with pytest.raises(NotFoundError):
            await conversations.store.show(tenant, "mine")

    await _leave_early(conversations, tenant, nobody_is_shown_it)
    assert (await conversations.store.list(tenant)).data == ()
    assert await conversations.store.create(tenant, "mine")


async def test_conversation_may_be_made_while_its_first_turn_is_under_way(conversations, tenant):
    async def make():
        await conversations.store.create(tenant, "mine", title="Kept")

    await _leave_early(conversations, tenant, make)
    (kept,) = (await conversations.store.list(tenant)).data
    assert (kept.title, kept.num_turns) == ("Kept", 0)


async def test_first_turn_that_ends_early_leaves_no_system_prompt(conversations, tenant):
    with suppress(LeftError):
        async with conversations.turn(tenant, "mine", "q0", system_prompt="Rhyme."):
            raise LeftError
    async with conversations.turn(tenant, "mine", "q1") as turn:
        assert turn.system_prompt is None


async def test_turn_that_ends_wakes_the_next_of_its_process(conversations, tenant, monkeypatch):
    monkeypatch.setattr(turn_queue, "LOOK_EVERY_S", 2 * SOON_S)
    async with conversations.turn(tenant, "mine", "q0") as turn:
        waiting = asyncio.create_task(take_turn(conversations, tenant, "mine", "q1"))
        await _is_waiting(conversations)
        await turn.finish(make_result("So."))
    async with asyncio.timeout(SOON_S):
        await waiting


async def test_cancelling_a_turn_before_its_turn_has_come_keeps_nobody_waiting(opened, tenant):
    conversations, other = opened(), opened()
    async with conversations.turn(tenant, "mine", "q0") as turn:
        waiting = [
            asyncio.create_task(take_turn(one, tenant, "mine", "never"))
            for one in (conversations, other, conversations)
        ]
        await _is_in_line(conversations, turn, 4)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        await turn.finish(make_result("So."))
    await take_turn(conversations, tenant, "mine", "q1")
    assert await questions_of(conversations, tenant) == ["q0", "q1"]


async def test_turn_is_stored_once_however_often_it_is_finished(conversations, tenant):
    async with conversations.turn(tenant, "mine", "q0") as turn:
        await turn.finish(make_result("So."))
        await turn.finish(make_result("So."))
    assert await questions_of(conversations, tenant) == ["q0"]


async def test_turns_take_place_one_after_the_other_in_the_order_of_arrival(opened, tenant):
    """Also those of other processes."""
    facades = [opened() for _ in range(3)]
    at_once, seen = 0, []

    async def take(number):
        nonlocal at_once
        async with facades[number % 3].turn(tenant, "mine", f"q{number}") as turn:
            at_once += 1
            seen.append((number, at_once, said(turn.history)[::2]))
            await turn.finish(make_result("So."))
            at_once -= 1

    async with facades[0].turn(tenant, "mine", "first") as first:
        tasks = []
        for number in range(6):
            tasks.append(asyncio.create_task(take(number)))
            await _is_in_line(facades[0], first, number + 2)
        await first.finish(make_result("So."))
    await asyncio.gather(*tasks)
    expected = ["first", *(f"q{number}" for number in range(6))]
    assert seen == [(number, 1, expected[: number + 1]) for number in range(6)]
    assert await questions_of(facades[0], tenant) == expected


async def test_turns_on_different_conversations_do_not_wait_for_each_other(conversations, tenant):
    async with (
        conversations.turn(tenant, "one", "q") as one,
        conversations.turn(tenant, "two", "q") as two,
        conversations.turn(f"not {tenant}", "one", "q") as three,
    ):
        for turn in (three, two, one):
            await turn.finish(make_result("So."))


async def test_busy_conversation_is_told_after_the_time_limit(opened, tenant):
    holder, hasty = opened(), opened(max_wait_s=0.1)
    async with holder.turn(tenant, "mine", "q0") as turn:
        with pytest.raises(ConflictError, match=r"'mine' is busy.*after 0.1 s") as refused:
            await take_turn(hasty, tenant, "mine")
        assert refused.value.param == "conversation_id"
        await turn.finish(make_result("So."))
    await take_turn(hasty, tenant, "mine", "q1")
    assert await questions_of(holder, tenant) == ["q0", "q1"]


async def test_claims_of_who_is_at_it_and_of_who_waits_are_renewed(opened, tenant, monkeypatch):
    monkeypatch.setattr(turn_queue, "RENEWALS_PER_LEASE", 3000)  # every 10 ms
    conversations, other = opened(), opened()
    async with conversations.turn(tenant, "mine", "q0") as turn:
        waiting = asyncio.create_task(take_turn(other, tenant, "mine", "q1"))
        await _is_in_line(conversations, turn, 2)
        before = await _expiries(conversations, turn)

        async def are_later():
            return all(map(operator.gt, await _expiries(conversations, turn), before))

        await _until(are_later)
        await turn.finish(make_result("So."))
    await waiting
    assert await questions_of(conversations, tenant) == ["q0", "q1"]


async def test_owner_that_stopped_renewing_loses_its_turn_and_cannot_store(opened, tenant):
    frozen, other = opened(lease_s=BRIEF_LEASE_S), opened()
    frozen.store.renew = _never
    async with frozen.turn(tenant, "mine", "late") as turn:
        await take_turn(other, tenant, "mine", "q0")
        with pytest.raises(ConflictError, match="did not renew its claim"):
            await turn.finish(make_result("So."))
    assert await questions_of(other, tenant) == ["q0"]
    await take_turn(other, tenant, "mine", "q1")
    assert await questions_of(other, tenant) == ["q0", "q1"]


async def test_owner_cannot_store_while_somebody_else_has_the_turn(opened, tenant):
    frozen, other = opened(lease_s=BRIEF_LEASE_S), opened()
    frozen.store.renew = _never
    async with (
        frozen.turn(tenant, "mine", "late") as turn,
        other.turn(tenant, "mine", "q0") as theirs,
    ):
        with pytest.raises(ConflictError):
            await turn.finish(make_result("So."))
        await theirs.finish(make_result("So."))
    assert await questions_of(other, tenant) == ["q0"]


async def test_draft_of_a_process_that_died_does_not_count(opened, tenant):
    dead, other = opened(lease_s=BRIEF_LEASE_S), opened(max_conversations=1)
    dead.store.renew = dead.store.leave = _never
    await _leave_early(dead, tenant)
    await asyncio.sleep(2 * BRIEF_LEASE_S)
    await take_turn(other, tenant, "other", "q0")
    assert [one.id for one in (await other.store.list(tenant)).data] == ["other"]


async def test_turn_on_a_conversation_that_is_deleted_meanwhile_is_not_stored(
    conversations, tenant
):
    await take_turn(conversations, tenant, "mine", "q0")
    async with conversations.turn(tenant, "mine", "q1") as turn:
        waiting = asyncio.create_task(take_turn(conversations, tenant, "mine", "q2"))
        await _is_in_line(conversations, turn, 2)
        await conversations.store.delete(tenant, "mine")
        with pytest.raises(NotFoundError):
            await turn.finish(make_result("So."))
    with pytest.raises(NotFoundError):
        await waiting
    assert (await conversations.store.list(tenant)).data == ()


async def test_id_is_checked_before_anything_is_asked(conversations, tenant):
    with pytest.raises(ConfigError, match="conversation_id"):
        await take_turn(conversations, tenant, "../mine")


async def _never(*_: object) -> bool:
    return True


async def _nothing():
    pass


async def _leave_early(conversations, tenant, meanwhile=_nothing):
    with suppress(LeftError):
        async with conversations.turn(tenant, "mine", "q0"):
            await meanwhile()
            raise LeftError


async def _is_in_line(conversations, turn, num_tickets):
    """Until so many have a ticket for the conversation of ``turn``."""

    async def is_it():
        return len(await _expiries(conversations, turn)) >= num_tickets

    await _until(is_it)


async def _is_waiting(conversations):
    """Until somebody is to be woken."""

    async def is_it():
        return bool(conversations._queue._waiting)

    await _until(is_it)


async def _until(condition):
    """Nobody tells when others, perhaps other processes, have changed the database."""
    async with asyncio.timeout(SOON_S):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def _expiries(conversations, turn):
    """Of all tickets for the conversation of ``turn``, in their order."""
    query = (
        select(tickets.c.expires_at)
        .where(tickets.c.conversation_key == turn._ticket.conversation_key)
        .order_by(tickets.c.key)
    )
    database = conversations.store._database
    return await database.read(lambda found: list(found.execute(query).scalars()))
