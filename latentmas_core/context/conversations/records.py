"""Conversations and their turns as plain data: what is stored, listed and exported."""

from typing import Literal

from latentmas_core.chat import AnyText, ChatMessage, JsonObject
from latentmas_core.config import FrozenModel
from latentmas_core.context.documents.document import Document
from latentmas_core.request import Mode, Question
from latentmas_core.result import Usage


class TurnMetadata(FrozenModel):
    """How an answer came about; ``result_id`` is the ``id`` of its result."""

    result_id: str
    pipeline: str
    mode: Mode
    usage: Usage = Usage()
    citations: tuple[JsonObject, ...] = ()


class Turn(FrozenModel):
    """A question and its answer, always both.

    ``messages`` stand between them: calls of tools and what the tools answered. ``documents`` came
    with the question; later ones find them, too. ``created_at``: when the answer was there, in
    seconds since 1970.
    """

    id: str
    question: Question
    messages: tuple[ChatMessage, ...] = ()
    documents: tuple[Document, ...] = ()
    answer: AnyText
    metadata: TurnMetadata
    created_at: float

    def as_messages(self) -> tuple[ChatMessage, ...]:
        """As a later question is told of it."""
        asked = ChatMessage(role="user", content=self.question)
        answered = ChatMessage(role="assistant", content=self.answer)
        return (asked, *self.messages, answered)


class ConversationInfo(FrozenModel):
    """All of a conversation but its turns. Times are in seconds since 1970; ``updated_at`` is that
    of the last turn or change. ``num_bytes``: of the turns, as they are stored."""

    id: str
    title: str | None
    system_prompt: str | None
    created_at: float
    updated_at: float
    num_turns: int
    num_bytes: int


class ConversationList(FrozenModel):
    """A page of conversations, the last changed first. ``next`` is where the next page begins; None
    on the last one."""

    data: tuple[ConversationInfo, ...]
    next: str | None


class ConversationPage(FrozenModel):
    """A conversation with some of its turns, oldest first. ``first`` is the number of the first of
    them, counted from 0: ask for those before it to see more."""

    conversation: ConversationInfo
    turns: tuple[Turn, ...]
    first: int


class ConversationExport(FrozenModel):
    """A conversation as a whole, in a form that later versions can read too."""

    format: Literal["latentmas-conversation"] = "latentmas-conversation"
    version: Literal[1] = 1
    conversation: ConversationInfo
    turns: tuple[Turn, ...]
