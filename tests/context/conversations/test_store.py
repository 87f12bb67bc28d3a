"""Conversations in both databases: made, listed, shown, renamed, deleted, exported, each tenant's
own."""

import json

import pytest

from latentmas_core.chat import ChatMessage, ToolCall
from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.context.conversations.conversations import Conversations
from latentmas_core.context.conversations.records import ConversationExport
from latentmas_core.errors import ConfigError, ConflictError, NotFoundError
from tests.context.conversations.answers import USAGE, make_result, take_turn

CALLS = {
    "show": (),
    "rename": ("title",),
    "delete": (),
    "export": (),
}


@pytest.fixture
def store(conversations):
    return conversations.store


async def ids_of(store, tenant, **options):
    return [one.id for one in (await store.list(tenant, **options)).data]


async def test_new_conversation_is_shown_as_it_was_made(store, tenant):
    made = await store.create(tenant, "mine", title="Où? 🦊", system_prompt="Be brief.")
    assert (made.id, made.title, made.system_prompt) == ("mine", "Où? 🦊", "Be brief.")
    assert (made.num_turns, made.num_bytes) == (0, 0)
    shown = await store.show(tenant, "mine")
    assert (shown.conversation, shown.turns, shown.first) == (made, (), 0)


async def test_conversation_without_an_id_is_given_one(store, tenant):
    first, second = await store.create(tenant), await store.create(tenant)
    assert first.id != second.id
    assert await ids_of(store, tenant) == [second.id, first.id]


async def test_id_that_is_taken_is_refused(store, tenant):
    await store.create(tenant, "mine")
    with pytest.raises(ConflictError, match="'mine' exists already"):
        await store.create(tenant, "mine")


@pytest.mark.parametrize("name", ["..", "a/b", "", "a" * 129])
async def test_id_with_path_characters_is_refused_by_every_call(store, tenant, name):
    for call, arguments in (CALLS | {"create": ()}).items():
        with pytest.raises(ConfigError, match="conversation_id is"):
            await getattr(store, call)(tenant, name, *arguments)


async def test_conversations_are_listed_the_last_changed_first_page_by_page(store, tenant):
    for name in "abcde":
        await store.create(tenant, name)
    await store.rename(tenant, "b", "changed")
    first = await store.list(tenant, limit=2)
    second = await store.list(tenant, limit=2, after=first.next)
    last = await store.list(tenant, limit=2, after=second.next)
    pages = [[one.id for one in page.data] for page in (first, second, last)]
    assert pages == [["b", "e"], ["d", "c"], ["a"]]
    assert last.next is None


async def test_pages_part_those_that_changed_at_the_same_time(url, tenant):
    at_once = Conversations(ConversationsConfig(url=url), clock=lambda: 7.0)
    for name in "abc":
        await at_once.store.create(tenant, name)
    first = await at_once.store.list(tenant, limit=2)
    rest = await at_once.store.list(tenant, limit=2, after=first.next)
    assert [one.id for one in (*first.data, *rest.data)] == ["c", "b", "a"]
    await at_once.close()


async def test_page_that_is_exactly_full_is_the_last(store, tenant):
    for name in "ab":
        await store.create(tenant, name)
    assert (await store.list(tenant, limit=2)).next is None


@pytest.mark.parametrize(
    "after", ["", "x", "~", "nan~a", "1.0", "1.0~", "inf~a", "1.0~a\x00", "1.0~a\n"]
)
async def test_page_that_begins_nowhere_is_refused(store, tenant, after):
    with pytest.raises(ConfigError, match="'next' of the page before") as refused:
        await store.list(tenant, after=after)
    assert refused.value.param == "after"


@pytest.mark.parametrize("limit", [0, 101, -1])
async def test_size_of_a_page_has_limits(store, tenant, limit):
    with pytest.raises(ConfigError, match="limit is"):
        await store.list(tenant, limit=limit)


async def test_turns_are_shown_the_last_first_page_and_in_their_order(conversations, tenant):
    for i in range(5):
        await take_turn(conversations, tenant, "mine", f"q{i}", f"a{i}")
    store = conversations.store
    last = await store.show(tenant, "mine", limit=2)
    middle = await store.show(tenant, "mine", limit=2, before=last.first)
    first = await store.show(tenant, "mine", limit=2, before=middle.first)
    pages = [(page.first, [turn.question for turn in page.turns]) for page in (last, middle, first)]
    assert pages == [(3, ["q3", "q4"]), (1, ["q1", "q2"]), (0, ["q0"])]
    assert (await store.show(tenant, "mine", before=99)).first == 0


async def test_renamed_conversation_keeps_its_title(conversations, tenant):
    await take_turn(conversations, tenant, "mine", "Why?")
    assert (await conversations.store.rename(tenant, "mine", " New ")).title == "New"
    await take_turn(conversations, tenant, "mine", "And now?")
    (listed,) = (await conversations.store.list(tenant)).data
    assert listed.title == "New"


async def test_title_that_is_none_is_refused_and_nothing_changes(store, tenant):
    made = await store.create(tenant, "mine", title="Old")
    for title in ("", "a\nb", "x" * 201):
        with pytest.raises(ConfigError, match="title"):
            await store.rename(tenant, "mine", title)
    assert (await store.show(tenant, "mine")).conversation == made


async def test_deleted_conversation_is_gone_with_its_turns(conversations, tenant):
    store = conversations.store
    await take_turn(conversations, tenant, "mine")
    await store.delete(tenant, "mine")
    assert await ids_of(store, tenant) == []
    for call, arguments in CALLS.items():
        with pytest.raises(NotFoundError):
            await getattr(store, call)(tenant, "mine", *arguments)
    await store.create(tenant, "mine")
    assert (await store.show(tenant, "mine")).turns == ()


async def test_conversation_of_another_tenant_is_as_one_that_does_not_exist(conversations, tenant):
    store, other = conversations.store, f"not {tenant}"
    await take_turn(conversations, tenant, "theirs", "secret")
    before = await store.show(tenant, "theirs")
    for call, arguments in CALLS.items():
        told = []
        for name in ("theirs", "nobodys"):
            with pytest.raises(NotFoundError) as refused:
                await getattr(store, call)(other, name, *arguments)
            told.append((refused.value.message.replace(name, "?"), refused.value.param))
        assert told[0] == told[1]
    assert await ids_of(store, other) == []
    assert await store.show(tenant, "theirs") == before


async def test_two_tenants_may_use_one_id(conversations, tenant):
    other = f"not {tenant}"
    await take_turn(conversations, tenant, "same", "one")
    await take_turn(conversations, other, "same", "two")
    for owner, question in ((tenant, "one"), (other, "two")):
        (turn,) = (await conversations.store.show(owner, "same")).turns
        assert turn.question == question


async def test_turn_comes_back_as_it_was_in_every_script_and_with_all_it_has(conversations, tenant):
    text = "Zoë:\n你好 🦊 \u2028\x85\r\x00 ' \" \\ %s :x $1"
    messages = (
        ChatMessage(role="assistant", tool_calls=(ToolCall(name="add", arguments={"x": [1.5]}),)),
        ChatMessage(role="tool", content=text),
    )
    citations = ({"document": text, "chunk": 3},)
    async with conversations.turn(tenant, "mine", text) as turn:
        await turn.finish(make_result(text), messages=messages, citations=citations)
    (stored,) = (await conversations.store.show(tenant, "mine")).turns
    assert (stored.question, stored.answer, stored.messages) == (text, text, messages)
    assert stored.metadata.citations == citations
    assert (stored.metadata.result_id, stored.metadata.usage) == ("reason-1", USAGE)


async def test_export_is_json_with_all_turns_that_can_be_read_again(conversations, tenant):
    for i in range(3):
        await take_turn(conversations, tenant, "mine", f"q{i}", f"a{i}")
    exported = await conversations.store.export(tenant, "mine")
    read = json.loads(exported.model_dump_json())
    assert (read["format"], read["version"]) == ("latentmas-conversation", 1)
    assert [turn["answer"] for turn in read["turns"]] == ["a0", "a1", "a2"]
    assert ConversationExport.model_validate(read) == exported


async def test_tenant_has_so_many_conversations_and_no_more(url, tenant):
    few = Conversations(ConversationsConfig(url=url, max_conversations=2))
    await few.store.create(tenant, "a")
    await take_turn(few, tenant, "b")
    with pytest.raises(ConfigError, match="there are 2 conversations, which is the limit"):
        await few.store.create(tenant, "c")
    with pytest.raises(ConfigError, match="max_conversations"):
        await take_turn(few, tenant, None)
    await take_turn(few, tenant, "a")
    await few.store.create(f"not {tenant}", "c")
    await few.store.delete(tenant, "a")
    await few.store.create(tenant, "c")
    await few.close()


async def test_conversation_takes_turns_up_to_its_limits(url, tenant):
    short = Conversations(ConversationsConfig(url=url, max_turns=2))
    for _ in range(2):
        await take_turn(short, tenant, "mine")
    with pytest.raises(ConfigError, match="has 2 turns; it takes no more from 2 on"):
        await take_turn(short, tenant, "mine")
    await short.close()
    small = Conversations(ConversationsConfig(url=url, max_bytes=1000))
    await take_turn(small, tenant, "other", "x" * 1000)
    with pytest.raises(ConfigError, match=r"it takes no more from 1000 on .*max_bytes"):
        await take_turn(small, tenant, "other")
    shown = await small.store.show(tenant, "other")
    (turn,) = shown.turns
    assert shown.conversation.num_bytes == len(turn.model_dump_json().encode())
    await small.close()


async def test_system_prompt_that_cannot_be_stored_is_refused(store, tenant):
    with pytest.raises(ConfigError, match="NUL"):
        await store.create(tenant, "mine", system_prompt="a\x00b")
