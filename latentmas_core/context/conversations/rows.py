"""The SQL of conversations and turns. Each function works within a transaction of its caller's."""

import re
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    delete,
    exists,
    func,
    insert,
    select,
    tuple_,
    update,
)

from latentmas_core.context.conversations.config import POSTGRESQL
from latentmas_core.context.conversations.names import title_of
from latentmas_core.context.conversations.records import ConversationInfo, Turn
from latentmas_core.context.conversations.tables import conversations, tickets, turns
from latentmas_core.context.conversations.tickets import now
from latentmas_core.errors import ConfigError, NotFoundError

ConversationRow = Row[Any]

_CURSOR_MARK = "~"
CURSOR_PATTERN = rf"^[0-9]+\.[0-9]+{_CURSOR_MARK}[A-Za-z0-9._-]+$"


def not_found(conversation_id: str) -> NotFoundError:
    """The same for one that does not exist and for one of another tenant."""
    return NotFoundError(
        f"conversation {conversation_id!r} does not exist. List those that do.",
        param="conversation_id",
    )


def find(
    connection: Connection, tenant: str, conversation_id: str, *, locked: bool = False
) -> ConversationRow | None:
    """Drafts too; with ``locked`` nobody else changes it until the transaction ends."""
    query = select(conversations).where(
        conversations.c.tenant == tenant, conversations.c.id == conversation_id
    )
    return connection.execute(query.with_for_update() if locked else query).first()


def get(
    connection: Connection, tenant: str, conversation_id: str, *, locked: bool = False
) -> ConversationRow:
    """NotFoundError for one that nobody is shown."""
    row = find(connection, tenant, conversation_id, locked=locked)
    if row is None or row.is_draft:
        raise not_found(conversation_id)
    return row


def find_by_key(
    connection: Connection, key: int, *, locked: bool = False
) -> ConversationRow | None:
    """None if it is gone. ``locked``: nobody else writes to it until the transaction ends."""
    query = select(conversations).where(conversations.c.key == key)
    return connection.execute(query.with_for_update() if locked else query).first()


def lock_tenant(connection: Connection, tenant: str) -> None:
    """Conversations of a tenant are made one at a time: else the count could go beyond its limit.
    SQLite has one writer anyway."""
    if connection.dialect.name == POSTGRESQL:
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(tenant, 0))))


def make_room(connection: Connection, tenant: str, max_conversations: int) -> None:
    """Throw away the drafts that a process left behind when it died. ConfigError if there is no
    room all the same."""
    is_held = exists().where(
        tickets.c.conversation_key == conversations.c.key, tickets.c.expires_at > now(connection)
    )
    is_stale = and_(conversations.c.tenant == tenant, conversations.c.is_draft, ~is_held)
    stale = connection.execute(select(conversations.c.key).where(is_stale).with_for_update())
    keys = list(stale.scalars())
    # Again under the lock: somebody may have taken a ticket since they were looked at.
    connection.execute(delete(conversations).where(conversations.c.key.in_(keys), is_stale))
    count = select(func.count()).where(conversations.c.tenant == tenant)
    if connection.execute(count).scalar_one() >= max_conversations:
        raise ConfigError(
            f"there are {max_conversations} conversations, which is the limit "
            "(conversations.max_conversations). Delete one.",
            param="conversation_id",
        )


def add(connection: Connection, **values: Any) -> ConversationRow:
    """A conversation without turns; ``values`` by column."""
    counts = {"num_turns": 0, "num_bytes": 0}
    query = insert(conversations).values(counts | values).returning(*conversations.c)
    return connection.execute(query).one()


def change(connection: Connection, key: int, **values: Any) -> ConversationRow:
    """The row behind the change; there must be one."""
    query = update(conversations).where(conversations.c.key == key).values(values)
    return connection.execute(query.returning(*conversations.c)).one()


def remove(connection: Connection, key: int) -> None:
    """With its turns and tickets."""
    connection.execute(delete(conversations).where(conversations.c.key == key))


def page(
    connection: Connection, tenant: str, *, limit: int, after: str | None
) -> list[ConversationRow]:
    """The last changed first, from behind the cursor on."""
    place = (conversations.c.updated_at, conversations.c.id)
    query = select(conversations).where(
        conversations.c.tenant == tenant, conversations.c.is_draft.is_(False), _behind(after)
    )
    in_order = query.order_by(*(column.desc() for column in place)).limit(limit)
    return list(connection.execute(in_order))


def cursor_of(row: ConversationRow) -> str:
    """Where a page begins that comes behind this row."""
    return f"{row.updated_at!r}{_CURSOR_MARK}{row.id}"


def _behind(cursor: str | None) -> ColumnElement[bool]:
    if cursor is None:
        return conversations.c.id.is_not(None)
    if not re.fullmatch(CURSOR_PATTERN, cursor):
        raise ConfigError(
            f"after is {cursor[:80]!r}; it is the 'next' of the page before. Leave it out for the "
            "first page.",
            param="after",
        )
    time, _, conversation_id = cursor.partition(_CURSOR_MARK)
    place = tuple_(conversations.c.updated_at, conversations.c.id)
    return place < tuple_(float(time), conversation_id)


def turns_of(
    connection: Connection, key: int, *, limit: int, before: int | None = None
) -> list[Turn]:
    """The last ``limit`` turns, or the last of those before one; in their order."""
    query = select(turns.c.content).where(turns.c.conversation_key == key)
    if before is not None:
        query = query.where(turns.c.position < before)
    latest = connection.execute(query.order_by(turns.c.position.desc()).limit(limit))
    return [Turn.model_validate_json(content) for content in reversed(list(latest.scalars()))]


def has_turn_of(connection: Connection, key: int, turn_id: str) -> bool:
    """Whether a conversation has the turn already: one that is sent again is kept once."""
    query = select(turns.c.position).where(turns.c.conversation_key == key, turns.c.id == turn_id)
    return connection.execute(query).first() is not None


def add_turn(
    connection: Connection, row: ConversationRow, turn: Turn, *, max_title_chars: int
) -> None:
    """Behind the others of a locked conversation, which is no draft from then on."""
    content = turn.model_dump_json()
    values = {"conversation_key": row.key, "position": row.num_turns}
    connection.execute(insert(turns).values(values | {"id": turn.id, "content": content}))
    change(
        connection,
        row.key,
        title=row.title or title_of(turn.question, max_title_chars),
        updated_at=turn.created_at,
        num_turns=row.num_turns + 1,
        num_bytes=row.num_bytes + len(content.encode()),
        is_draft=False,
    )


def has_tickets(connection: Connection, key: int) -> bool:
    """Whether anybody has his turn on the conversation, or waits for it."""
    query = select(tickets.c.key).where(tickets.c.conversation_key == key).limit(1)
    return connection.execute(query).first() is not None


def info_of(row: ConversationRow) -> ConversationInfo:
    """What its owner is told of it."""
    fields = ConversationInfo.model_fields
    return ConversationInfo(**{name: row._mapping[name] for name in fields})
