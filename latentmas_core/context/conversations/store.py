"""Conversations in a database: listed, shown, renamed, deleted, exported, and turns appended.

Every call names the tenant, or a ticket that was taken with it: a conversation of another tenant is
as one that does not exist. All that a call changes is changed in one transaction.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import Connection

from latentmas_core.context.conversations import rows, tickets
from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.context.conversations.database import Database
from latentmas_core.context.conversations.names import check_id, check_title, new_id
from latentmas_core.context.conversations.records import (
    ConversationExport,
    ConversationInfo,
    ConversationList,
    ConversationPage,
    Turn,
)
from latentmas_core.context.conversations.rows import ConversationRow
from latentmas_core.context.conversations.tickets import Ticket
from latentmas_core.errors import ConfigError, ConflictError

MAX_LISTED = 100
MAX_SHOWN_TURNS = 200


class Entry(NamedTuple):
    """A ticket for a turn; ``has_turn``: nobody is before it."""

    ticket: Ticket
    has_turn: bool
    system_prompt: str | None


class History(NamedTuple):
    """The latest turns of a conversation, oldest first, and how many there are in all."""

    turns: list[Turn]
    num_turns: int


class ConversationStore:
    """``clock`` tells seconds since 1970. Any call raises StoreError if the database is down."""

    def __init__(
        self, config: ConversationsConfig, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._config = config
        self._clock = clock
        self._database = Database(config.database_url)

    async def close(self) -> None:
        await self._database.close()

    async def create(
        self,
        tenant: str,
        conversation_id: str | None = None,
        *,
        title: str | None = None,
        system_prompt: str | None = None,
    ) -> ConversationInfo:
        """A new one, with an id of its own if none is given. ConflictError if the id is taken."""
        wanted = new_id() if conversation_id is None else check_id(conversation_id)
        checked = None if title is None else check_title(title, self._config.max_title_chars)

        def work(connection: Connection) -> ConversationInfo:
            row = self._opened(connection, tenant, wanted, _checked_prompt(system_prompt))
            if not row.is_draft:
                raise ConflictError(
                    f"conversation {wanted!r} exists already. Choose another id.",
                    param="conversation_id",
                )
            given = {"title": checked, "system_prompt": system_prompt}
            return rows.info_of(rows.change(connection, row.key, is_draft=False, **given))

        return await self._database.write(work)

    async def list(
        self, tenant: str, *, limit: int = 20, after: str | None = None
    ) -> ConversationList:
        """The last changed first; ``after`` is the ``next`` of the page before."""
        _check_between("limit", limit, 1, MAX_LISTED)

        def work(connection: Connection) -> ConversationList:
            found = rows.page(connection, tenant, limit=limit + 1, after=after)
            more = rows.cursor_of(found[limit - 1]) if len(found) > limit else None
            return ConversationList(data=tuple(map(rows.info_of, found[:limit])), next=more)

        return await self._database.read(work)

    async def show(
        self, tenant: str, conversation_id: str, *, limit: int = 50, before: int | None = None
    ) -> ConversationPage:
        """The last ``limit`` turns, or the last of those before number ``before``."""
        check_id(conversation_id)
        _check_between("limit", limit, 1, MAX_SHOWN_TURNS)
        if before is not None:
            _check_between("before", before, 0, 2**31 - 1)

        def work(connection: Connection) -> ConversationPage:
            row = rows.get(connection, tenant, conversation_id)
            end = row.num_turns if before is None else min(before, row.num_turns)
            shown = rows.turns_of(connection, row.key, limit=limit, before=end)
            first = end - len(shown)
            return ConversationPage(conversation=rows.info_of(row), turns=tuple(shown), first=first)

        return await self._database.read(work)

    async def rename(self, tenant: str, conversation_id: str, title: str) -> ConversationInfo:
        """Raises NotFoundError, and ConfigError for a title that is none."""
        check_id(conversation_id)
        checked = check_title(title, self._config.max_title_chars)

        def work(connection: Connection) -> ConversationInfo:
            row = rows.get(connection, tenant, conversation_id, locked=True)
            renamed = rows.change(connection, row.key, title=checked, updated_at=self._clock())
            return rows.info_of(renamed)

        return await self._database.write(work)

    async def delete(self, tenant: str, conversation_id: str) -> None:
        """A turn that is under way on it cannot be stored any more."""
        check_id(conversation_id)

        def work(connection: Connection) -> None:
            row = rows.get(connection, tenant, conversation_id, locked=True)
            rows.remove(connection, row.key)

        await self._database.write(work)

    async def export(self, tenant: str, conversation_id: str) -> ConversationExport:
        """With all turns."""
        check_id(conversation_id)

        def work(connection: Connection) -> ConversationExport:
            row = rows.get(connection, tenant, conversation_id)
            everything = rows.turns_of(
                connection, row.key, limit=row.num_turns, before=row.num_turns
            )
            return ConversationExport(conversation=rows.info_of(row), turns=tuple(everything))

        return await self._database.read(work)

    async def enter(
        self, tenant: str, conversation_id: str, token: str, *, system_prompt: str | None
    ) -> Entry:
        """Get in line for a turn. A conversation that does not exist is made, as a draft.

        ConfigError if it has no room for another turn.
        """
        check_id(conversation_id)

        def work(connection: Connection) -> Entry:
            row = self._opened(connection, tenant, conversation_id, _checked_prompt(system_prompt))
            self._check_room(row)
            ticket = Ticket(conversation_id, row.key, token)
            tickets.take(connection, ticket, self._config.lease_s)
            tickets.drop_expired(connection, ticket)
            return Entry(ticket, tickets.has_turn(connection, ticket), row.system_prompt)

        return await self._database.write(work)

    async def claim(self, ticket: Ticket) -> bool:
        """Whether it is the ticket's turn. ConflictError if it expired and was thrown away."""

        def work(connection: Connection) -> bool:
            _conversation_of(connection, ticket, locked=True)
            tickets.drop_expired(connection, ticket)
            if not tickets.renew(connection, ticket, self._config.lease_s):
                raise _lost(ticket)
            return tickets.has_turn(connection, ticket)

        if not await self._database.read(lambda seen: tickets.may_have_turn(seen, ticket)):
            return False
        return await self._database.write(work)

    async def renew(self, ticket: Ticket) -> bool:
        """False: the ticket expired and was thrown away, or the conversation was deleted."""
        lease_s = self._config.lease_s
        return await self._database.write(lambda found: tickets.renew(found, ticket, lease_s))

    async def latest(self, ticket: Ticket) -> History:
        """What a turn is told of at most."""
        limit = self._config.max_history_turns

        def work(connection: Connection) -> History:
            row = _conversation_of(connection, ticket)
            return History(
                rows.turns_of(connection, row.key, limit=limit, before=row.num_turns),
                row.num_turns,
            )

        return await self._database.read(work)

    async def append(self, ticket: Ticket, turn: Turn) -> None:
        """Store the turn; a second time it changes nothing.

        ConflictError if it is not the ticket's turn (any more), NotFoundError if the conversation
        was deleted.
        """

        def work(connection: Connection) -> None:
            row = _conversation_of(connection, ticket, locked=True)
            if rows.has_turn_of(connection, row.key, turn.id):
                return
            if not tickets.has_turn(connection, ticket):
                raise _lost(ticket)
            self._check_room(row)
            limit = self._config.max_title_chars
            rows.add_turn(connection, row, turn, max_title_chars=limit)

        await self._database.write(work)

    async def leave(self, ticket: Ticket) -> None:
        """Give the ticket back; a draft that nobody waits for any more goes with it."""

        def work(connection: Connection) -> None:
            row = rows.find_by_key(connection, ticket.conversation_key, locked=True)
            tickets.give_back(connection, ticket)
            if row is not None and row.is_draft and not rows.has_tickets(connection, row.key):
                rows.remove(connection, row.key)

        await self._database.write(work)

    def _opened(
        self,
        connection: Connection,
        tenant: str,
        conversation_id: str,
        system_prompt: str | None,
    ) -> ConversationRow:
        """The conversation, locked; a draft if there was none."""
        row = rows.find(connection, tenant, conversation_id, locked=True)
        if row is None:
            rows.lock_tenant(connection, tenant)
            row = rows.find(connection, tenant, conversation_id, locked=True)
        if row is None:
            rows.make_room(connection, tenant, self._config.max_conversations)
            began = self._clock()
            row = rows.add(
                connection,
                tenant=tenant,
                id=conversation_id,
                system_prompt=system_prompt,
                created_at=began,
                updated_at=began,
                is_draft=True,
            )
        return row

    def _check_room(self, row: ConversationRow) -> None:
        for field in ("turns", "bytes"):
            count, limit = row._mapping[f"num_{field}"], getattr(self._config, f"max_{field}")
            if count >= limit:
                raise ConfigError(
                    f"conversation {row.id!r} has {count} {field}; it takes no more from {limit} "
                    f"on (conversations.max_{field}). Begin another.",
                    param="conversation_id",
                )


def _conversation_of(
    connection: Connection, ticket: Ticket, *, locked: bool = False
) -> ConversationRow:
    row = rows.find_by_key(connection, ticket.conversation_key, locked=locked)
    if row is None:
        raise rows.not_found(ticket.conversation_id)
    return row


def _lost(ticket: Ticket) -> ConflictError:
    return ConflictError(
        f"this turn on conversation {ticket.conversation_id!r} did not renew its claim in time "
        "(conversations.lease_s), and others went on. Nothing of it was stored. Ask again.",
        param="conversation_id",
    )


def _checked_prompt(system_prompt: str | None) -> str | None:
    if system_prompt is not None and "\x00" in system_prompt:
        raise ConfigError(
            "system_prompt has a NUL character, which databases cannot keep. Take it out.",
            param="system_prompt",
        )
    return system_prompt


def _check_between(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{field} is {value}; it is {low} to {high}. Correct it.", param=field)
