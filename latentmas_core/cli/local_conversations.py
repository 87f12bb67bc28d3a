"""Conversations that this process keeps, as the command line lists and reads them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from latentmas_core.chat import ChatMessage
from latentmas_core.context.answerer import DEFAULT_TENANT
from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.context.conversations.records import ConversationInfo
from latentmas_core.context.conversations.store import ConversationStore
from latentmas_core.errors import NotFoundError

MAX_LISTED = 100

T = TypeVar("T")


def kept_conversations(config: ConversationsConfig) -> tuple[ConversationInfo, ...]:
    """The last changed first."""
    return _run(config, lambda store: store.list(DEFAULT_TENANT, limit=MAX_LISTED)).data


def kept_messages(config: ConversationsConfig, conversation_id: str) -> list[ChatMessage]:
    """What was said in one of them; nothing in one that has not begun."""
    try:
        exported = _run(config, lambda store: store.export(DEFAULT_TENANT, conversation_id))
    except NotFoundError:
        return []
    return [message for turn in exported.turns for message in turn.as_messages()]


def _run(config: ConversationsConfig, ask: Callable[[ConversationStore], Awaitable[T]]) -> T:
    async def asked() -> T:
        store = ConversationStore(config)
        try:
            return await ask(store)
        finally:
            await store.close()

    return asyncio.run(asked())
