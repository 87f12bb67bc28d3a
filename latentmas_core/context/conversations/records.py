"""Conversations and their turns as plain data: what is stored, listed and exported."""

from typing import Literal

from latentmas_core.chat import AnyText, ChatMessage, JsonObject
from latentmas_core.config import FrozenModel
from latentmas_core.context.documents.document import Document
from latentmas_core.request import Mode, Question
from latentmas_core.result import Usage


class TurnMetadata(FrozenModel):
    """How an answer came about."""

    result_id: str
    """The `id` of its result."""
    pipeline: str
    """The pipeline that ran."""
    mode: Mode
    """The mode in which it ran."""
    usage: Usage = Usage()
    """Sums over all agents."""
    citations: tuple[JsonObject, ...] = ()
    """Those of the result."""


class Turn(FrozenModel):
    """A question and its answer, always both."""

    id: str
    """The turn's own id."""
    question: Question
    """What was asked."""
    messages: tuple[ChatMessage, ...] = ()
    """Calls of tools between question and answer, and what the tools answered."""
    documents: tuple[Document, ...] = ()
    """Those that came with the question; later ones find them, too."""
    answer: AnyText
    """What was answered."""
    metadata: TurnMetadata
    """How it came about."""
    created_at: float
    """When the answer was there, in seconds since 1970."""

    def as_messages(self) -> tuple[ChatMessage, ...]:
        """As a later question is told of it."""
        asked = ChatMessage(role="user", content=self.question)
        answered = ChatMessage(role="assistant", content=self.answer)
        return (asked, *self.messages, answered)


class ConversationInfo(FrozenModel):
    """All of a conversation but its turns."""

    id: str
    """What `conversation_id` of requests calls it."""
    title: str | None
    """The first question's beginning, or what it was renamed to."""
    system_prompt: str | None
    """What its first turn was given as `system_prompt`."""
    created_at: float
    """When it was begun, in seconds since 1970."""
    updated_at: float
    """When its last turn or change was, in seconds since 1970."""
    num_turns: int
    """How many turns it has."""
    num_bytes: int
    """How large the turns are, as they are stored."""


class ConversationList(FrozenModel):
    """A page of conversations."""

    data: tuple[ConversationInfo, ...]
    """The last changed first."""
    next: str | None
    """The `after` of the next page; null on the last one."""


class ConversationPage(FrozenModel):
    """A conversation with some of its turns."""

    conversation: ConversationInfo
    """All of it but its turns."""
    turns: tuple[Turn, ...]
    """Some of its turns, oldest first."""
    first: int
    """The number of the first of them, from 0; the `before` of the page in front."""


class ConversationExport(FrozenModel):
    """A conversation as a whole, in a form that later versions can read too."""

    format: Literal["latentmas-conversation"] = "latentmas-conversation"
    """What this is."""
    version: Literal[1] = 1
    """The version of that format."""
    conversation: ConversationInfo
    """All of it but its turns."""
    turns: tuple[Turn, ...]
    """All, oldest first."""
