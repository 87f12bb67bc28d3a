"""Conversations over HTTP: listed, shown, renamed, deleted, exported. Each caller reaches those of
its own tenant alone; turns on them are taken by the calls that answer questions.
"""

from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.responses import Response
from pydantic import Field

from deployments.access import current_caller
from latentmas_core.config import FrozenModel, Text
from latentmas_core.context.conversations.conversations import Conversations
from latentmas_core.context.conversations.names import TITLE_PATTERN, ConversationId
from latentmas_core.context.conversations.records import (
    ConversationExport,
    ConversationInfo,
    ConversationList,
    ConversationPage,
)
from latentmas_core.context.conversations.rows import CURSOR_PATTERN
from latentmas_core.context.conversations.store import MAX_LISTED, MAX_SHOWN_TURNS

_ONE = "/v1/conversations/{conversation_id}"

After = Annotated[str | None, Query(json_schema_extra={"pattern": CURSOR_PATTERN})]
NumListed = Annotated[int, Query(ge=1, le=MAX_LISTED)]
NumShown = Annotated[int, Query(ge=1, le=MAX_SHOWN_TURNS)]
Before = Annotated[int | None, Query(ge=0, le=2**31 - 1)]


class RenameBody(FrozenModel):
    """``PATCH /v1/conversations/{conversation_id}``."""

    title: Text = Field(json_schema_extra={"pattern": TITLE_PATTERN})
    """The new one, with at least one character that is no blank."""


class Deleted(FrozenModel):
    """``DELETE /v1/conversations/{conversation_id}``."""

    id: str
    """The conversation that is gone."""
    deleted: bool = True
    """Always true."""


def add_conversation_routes(app: FastAPI, conversations: Conversations) -> None:
    """``/v1/conversations``; everyone sees those of their own tenant."""
    store = conversations.store

    @app.get("/v1/conversations", response_model=ConversationList)
    async def listed(limit: NumListed = 20, after: After = None) -> ConversationList:
        """Conversations, the last changed first. `after` is the `next` of the page before."""
        return await store.list(current_caller().tenant, limit=limit, after=after)

    @app.get(_ONE, response_model=ConversationPage)
    async def shown(
        conversation_id: ConversationId, limit: NumShown = 50, before: Before = None
    ) -> ConversationPage:
        """The last turns of a conversation. `before`: those before that number, counted from 0."""
        tenant = current_caller().tenant
        return await store.show(tenant, conversation_id, limit=limit, before=before)

    @app.patch(_ONE, response_model=ConversationInfo)
    async def renamed(conversation_id: ConversationId, body: RenameBody) -> ConversationInfo:
        """Give it another title."""
        return await store.rename(current_caller().tenant, conversation_id, body.title)

    @app.delete(_ONE, response_model=Deleted)
    async def deleted(conversation_id: ConversationId) -> Deleted:
        """Delete it with its turns. One that is under way on it is not stored any more."""
        await store.delete(current_caller().tenant, conversation_id)
        return Deleted(id=conversation_id)

    @app.get(f"{_ONE}/export", response_model=ConversationExport)
    async def exported(conversation_id: ConversationId, response: Response) -> ConversationExport:
        """All of it, as a file."""
        name = f'attachment; filename="{conversation_id}.json"'
        response.headers["Content-Disposition"] = name
        return await store.export(current_caller().tenant, conversation_id)
