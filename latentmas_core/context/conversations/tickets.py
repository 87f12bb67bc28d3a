"""Whose turn it is on a conversation, also between processes: tickets in the order of arrival.

The first ticket has the turn. A ticket holds until it expires, by the clock of the database, and is
then thrown away by whoever comes next; who finds his own gone has lost his turn. All that changes
the order is done under the lock of the conversation's row.
"""

from typing import NamedTuple

from sqlalchemy import Connection, delete, func, insert, literal_column, select, update

from latentmas_core.context.conversations.config import POSTGRESQL, SQLITE
from latentmas_core.context.conversations.tables import tickets

_NOW = {
    SQLITE: "(julianday('now') - 2440587.5) * 86400.0",
    POSTGRESQL: "extract(epoch from clock_timestamp())::double precision",
}


class Ticket(NamedTuple):
    """A place in the queue of a conversation; nobody else knows its token."""

    conversation_id: str
    conversation_key: int
    token: str


def now(connection: Connection) -> float:
    """Seconds since 1970 by the one clock that all processes share."""
    return float(
        connection.execute(select(literal_column(_NOW[connection.dialect.name]))).scalar_one()
    )


def take(connection: Connection, ticket: Ticket, lease_s: float) -> None:
    """Get in line, last."""
    connection.execute(
        insert(tickets).values(
            conversation_key=ticket.conversation_key,
            token=ticket.token,
            expires_at=now(connection) + lease_s,
        )
    )


def renew(connection: Connection, ticket: Ticket, lease_s: float) -> bool:
    """False: the ticket is gone."""
    renewed = connection.execute(
        update(tickets)
        .where(tickets.c.token == ticket.token)
        .values(expires_at=now(connection) + lease_s)
    )
    return renewed.rowcount == 1


def may_have_turn(connection: Connection, ticket: Ticket) -> bool:
    """Whether it is worth to claim the turn: nobody whose ticket holds stands before it, or it is
    gone. Only a look, without a lock."""
    key = _key_of(connection, ticket)
    if key is None:
        return True
    before = select(tickets.c.key).where(
        tickets.c.conversation_key == ticket.conversation_key,
        tickets.c.key < key,
        tickets.c.expires_at > now(connection),
    )
    return connection.execute(before.limit(1)).first() is None


def has_turn(connection: Connection, ticket: Ticket) -> bool:
    """Whether it is the first of all that are left."""
    first = select(func.min(tickets.c.key)).where(
        tickets.c.conversation_key == ticket.conversation_key
    )
    key = _key_of(connection, ticket)
    return key is not None and key == connection.execute(first).scalar()


def drop_expired(connection: Connection, ticket: Ticket) -> None:
    """Throw away the tickets of others that no longer hold."""
    connection.execute(
        delete(tickets).where(
            tickets.c.conversation_key == ticket.conversation_key,
            tickets.c.token != ticket.token,
            tickets.c.expires_at <= now(connection),
        )
    )


def give_back(connection: Connection, ticket: Ticket) -> None:
    """Nothing happens if it is gone already."""
    connection.execute(delete(tickets).where(tickets.c.token == ticket.token))


def _key_of(connection: Connection, ticket: Ticket) -> int | None:
    own = select(tickets.c.key).where(tickets.c.token == ticket.token)
    return connection.execute(own).scalar()
