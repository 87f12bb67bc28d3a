"""The tables that conversations are kept in, the same for SQLite and PostgreSQL.

Times are seconds since 1970. What is in a turn is one JSON text: it is always read as a whole.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    func,
    insert,
    inspect,
    select,
)

from latentmas_core.context.conversations.config import POSTGRESQL
from latentmas_core.errors import StoreError

SCHEMA_VERSION = 1

# SQLite counts by itself in columns of this very type only.
_KEY = BigInteger().with_variant(Integer, "sqlite")
# Any number that is the same for all: who holds it makes the tables while the others wait.
_SCHEMA_LOCK = 0x1A7E47
_VERSION_TABLE = "latentmas_schema"

metadata = MetaData()

schema = Table(_VERSION_TABLE, metadata, Column("version", Integer, nullable=False))

# A draft was made by a turn that has not ended well so far: nobody is shown it.
conversations = Table(
    "latentmas_conversations",
    metadata,
    Column("key", _KEY, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("title", Text),
    Column("system_prompt", Text),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("num_turns", Integer, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("is_draft", Boolean, nullable=False),
    UniqueConstraint("tenant", "id"),
    Index("latentmas_conversations_by_time", "tenant", "updated_at", "id"),
)


def _of_conversation(*, is_part_of_key: bool) -> Column[int]:
    parent = ForeignKey("latentmas_conversations.key", ondelete="CASCADE")
    return Column("conversation_key", _KEY, parent, primary_key=is_part_of_key, nullable=False)


# ``position`` counts the turns of a conversation from 0.
turns = Table(
    "latentmas_turns",
    metadata,
    _of_conversation(is_part_of_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("id", Text, nullable=False),
    Column("content", Text, nullable=False),
    UniqueConstraint("conversation_key", "id"),
)

# Who wants a turn on a conversation, in the order in which they came. The first has it.
tickets = Table(
    "latentmas_tickets",
    metadata,
    Column("key", _KEY, primary_key=True),
    _of_conversation(is_part_of_key=False),
    Column("token", Text, nullable=False, unique=True),
    Column("expires_at", Double, nullable=False),
    Index("latentmas_tickets_of_conversation", "conversation_key", "key"),
)


def make_tables(connection: Connection) -> None:
    """Make what is not there yet, whoever else does so. StoreError if a newer version was here."""
    if connection.dialect.name == POSTGRESQL:
        connection.execute(select(func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
    if not inspect(connection).has_table(_VERSION_TABLE):
        metadata.create_all(connection)
        connection.execute(insert(schema).values(version=SCHEMA_VERSION))
    found = connection.execute(select(func.max(schema.c.version))).scalar()
    if found != SCHEMA_VERSION:
        raise StoreError(
            f"the database of the conversations has schema {found}; this version of LatentMAS "
            f"reads {SCHEMA_VERSION}. Update LatentMAS, or name another database."
        )
