"""The facade: turns on conversations, told of what was said before, stored as a whole or not."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from latentmas_core.chat import ChatMessage
from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.context.conversations.history import (
    CountTokens,
    estimated_tokens,
    fit_history,
)
from latentmas_core.context.conversations.names import check_id, new_id
from latentmas_core.context.conversations.records import Turn, TurnMetadata
from latentmas_core.context.conversations.store import ConversationStore
from latentmas_core.context.conversations.tickets import Ticket
from latentmas_core.context.conversations.turn_queue import TurnQueue
from latentmas_core.context.documents.document import Document
from latentmas_core.result import Result


class OpenTurn:
    """A question that is being answered; nobody else is at the conversation meanwhile.

    ``history`` is what was said before, as far as it fits; ``num_left_out`` counts the turns that
    do not. ``system_prompt`` is the one given for this turn, else the conversation's own.
    ``documents`` are those of the turns before; of one name the last one.
    """

    def __init__(
        self,
        store: ConversationStore,
        ticket: Ticket,
        question: str,
        *,
        history: tuple[ChatMessage, ...],
        num_left_out: int,
        system_prompt: str | None,
        documents: tuple[Document, ...],
        clock: Callable[[], float],
    ) -> None:
        self.history = history
        self.num_left_out = num_left_out
        self.system_prompt = system_prompt
        self.documents = documents
        self._store = store
        self._ticket = ticket
        self._question = question
        self._clock = clock
        self._id = new_id()

    @property
    def conversation_id(self) -> str:
        return self._ticket.conversation_id

    async def finish(
        self,
        result: Result,
        *,
        messages: Sequence[ChatMessage] = (),
        documents: Sequence[Document] = (),
        citations: Sequence[dict[str, Any]] = (),
    ) -> Turn:
        """Store the turn. ``messages``: calls of tools before the answer, and what tools answered;
        ``documents``: those that came with it.

        After a StoreError it may be called again: a turn is stored once. ConflictError: the claim
        was lost meanwhile, and nothing is stored.
        """
        turn = Turn(
            id=self._id,
            question=self._question,
            messages=tuple(messages),
            documents=tuple(documents),
            answer=result.final_answer,
            metadata=TurnMetadata(
                result_id=result.id,
                pipeline=result.pipeline,
                mode=result.mode,
                usage=result.usage,
                citations=tuple(citations),
            ),
            created_at=self._clock(),
        )
        await self._store.append(self._ticket, turn)
        return turn


class Conversations:
    """All conversations of one database; ``store`` is for all but turns."""

    def __init__(
        self, config: ConversationsConfig, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.store = ConversationStore(config, clock=clock)
        self._config = config
        self._clock = clock
        self._queue = TurnQueue(self.store, config)

    async def close(self) -> None:
        await self.store.close()

    @asynccontextmanager
    async def turn(
        self,
        tenant: str,
        conversation_id: str | None,
        question: str,
        *,
        system_prompt: str | None = None,
        max_history_tokens: int | None = None,
        count_tokens: CountTokens = estimated_tokens,
    ) -> AsyncIterator[OpenTurn]:
        """A turn on a conversation, when those before it have ended.

        Without an id, or with one that does not exist, it is a new conversation, which exists once
        the turn is stored; its first system prompt is its own from then on. Who leaves without
        ``finish`` leaves the conversation as it was. ConflictError: it is busy.
        """
        wanted = new_id() if conversation_id is None else check_id(conversation_id)
        budget = self._config.max_history_tokens
        if max_history_tokens is not None:
            budget = min(budget, max_history_tokens)
        async with self._queue.turn(tenant, wanted, system_prompt=system_prompt) as entry:
            told = system_prompt if system_prompt is not None else entry.system_prompt
            latest = await self.store.latest(entry.ticket)
            # Counting the tokens of long turns takes a while.
            fitted = await asyncio.to_thread(
                fit_history, latest.turns, budget, count_tokens, system_prompt=told
            )
            num_unread = latest.num_turns - len(latest.turns)
            yield OpenTurn(
                self.store,
                entry.ticket,
                question,
                history=fitted.messages,
                num_left_out=fitted.num_left_out + num_unread,
                system_prompt=told,
                documents=_documents_of(latest.turns),
                clock=self._clock,
            )


def _documents_of(turns: Sequence[Turn]) -> tuple[Document, ...]:
    by_name = {document.name: document for turn in turns for document in turn.documents}
    return tuple(by_name.values())
