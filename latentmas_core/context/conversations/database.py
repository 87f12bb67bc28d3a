"""The database and the threads that talk to it: the only place that knows drivers and what they
raise. Nothing that it says or logs has a password or what was asked and answered.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from latentmas_core.context.conversations.config import SQLITE
from latentmas_core.context.conversations.tables import make_tables
from latentmas_core.errors import ConfigError, StoreError

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 4
CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 10  # also of the wait for another's lock
CALL_TIMEOUT_S = 15.0

T = TypeVar("T")
Work = Callable[[Connection], T]

_READS = "latentmas_reads"


class Database:
    """Runs transactions on threads of its own; what was begun there ends, whoever stops waiting.

    So a write is done or not, and never half; and an event loop is never blocked. The tables are
    made by the first call that reaches the database: it may be down when this is made.
    """

    def __init__(self, url: URL, *, call_timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._name = _shown(url)
        self._call_timeout_s = call_timeout_s
        self._engine = _open(url)
        self._reader = self._engine.execution_options(**{_READS: True})
        self._threads = ThreadPoolExecutor(MAX_CONNECTIONS, thread_name_prefix="latentmas-store")
        self._preparing = threading.Lock()
        self._is_prepared = False
        # SQLite takes one writer at a time, and who waits for it inside is in no order.
        self._writing = threading.Semaphore(1 if self._is_sqlite else MAX_CONNECTIONS)

    def __repr__(self) -> str:
        return f"Database({self._name})"

    @property
    def _is_sqlite(self) -> bool:
        return self._engine.dialect.name == SQLITE

    async def read(self, work: Work[T]) -> T:
        """What ``work`` returns; StoreError if the database does not answer."""
        return await self._run(lambda: self._transact(self._reader, work))

    async def write(self, work: Work[T]) -> T:
        """As ``read``; what ``work`` changed holds if it returns, and is undone if it raises."""

        def locked() -> T:
            with self._writing:
                return self._transact(self._engine, work)

        return await self._run(locked)

    async def close(self) -> None:
        """Wait for what was begun, no longer than for a call, and let go of the connections."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._call_timeout_s):
                await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        self._engine.dispose()

    async def _run(self, call: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._call_timeout_s):
                return await loop.run_in_executor(self._threads, call)
        except TimeoutError:
            raise self._failure(f"no answer within {self._call_timeout_s:g} s") from None

    def _transact(self, engine: Engine, work: Work[T]) -> T:
        try:
            self._prepare()
            with engine.begin() as connection:
                return work(connection)
        except DBAPIError as error:
            self._is_prepared = False  # what comes back may be another database
            raise self._failure(_first_line(error.orig)) from None
        except PoolTimeoutError as error:
            raise self._failure(_first_line(error)) from None

    def _prepare(self) -> None:
        with self._preparing:
            if not self._is_prepared:
                if self._is_sqlite:
                    _make_file(self._engine.url)
                with self._engine.begin() as connection:
                    make_tables(connection)
                self._is_prepared = True

    def _failure(self, reason: str) -> StoreError:
        """Where the database is, and what it said, is for the operator alone."""
        secret = self._engine.url.password
        told = reason.replace(str(secret), "***") if secret else reason
        logger.warning("the conversations in %s cannot be reached: %s", self._name, told)
        return StoreError(
            "conversations cannot be read or stored now: their database does not answer as it "
            "should. Try again later; the log says more."
        )


def _open(url: URL) -> Engine:
    options: dict[str, Any] = {
        "pool_size": MAX_CONNECTIONS,
        "max_overflow": 0,
        "pool_pre_ping": True,
        "hide_parameters": True,
    }
    if url.get_backend_name() == SQLITE:
        engine = create_engine(url, connect_args={"timeout": STATEMENT_TIMEOUT_S}, **options)
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        return create_engine(url, connect_args=_postgresql_options(url), **options)
    except ModuleNotFoundError:
        raise ConfigError(
            "conversations.url is PostgreSQL's, and its driver psycopg is not installed. Install "
            "latentmas[postgres].",
            param="url",
        ) from None


def _set_up_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # the driver begins no transaction: _begin_sqlite does
    for pragma in ("foreign_keys = ON", "journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    """Who is going to write says so at once: else two who have read could not both go on."""
    reads = connection.get_execution_options().get(_READS, False)
    connection.exec_driver_sql("BEGIN DEFERRED" if reads else "BEGIN IMMEDIATE")


def _make_file(url: URL) -> None:
    """Where it is not there yet, for its owner alone. What is wrong with it the database tells."""
    path = Path(str(url.database))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        logger.warning("%s cannot be made: %s", path, error.strerror)


def _postgresql_options(url: URL) -> dict[str, Any]:
    """Nothing waits for ever: not for a server that is not there, nor for one that went silent."""
    milliseconds = 1000 * STATEMENT_TIMEOUT_S
    options: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds} "
        f"-c idle_in_transaction_session_timeout={milliseconds}",
        "keepalives_idle": STATEMENT_TIMEOUT_S,
        "tcp_user_timeout": milliseconds,
        "application_name": "latentmas",
    }
    own: dict[str, Any] = {"prepare_threshold": None}  # poolers may change the server in between
    return own | {name: value for name, value in options.items() if name not in url.query}


def _first_line(error: BaseException | None) -> str:
    """What follows may quote values."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _shown(url: URL) -> str:
    place = f" at {url.host or 'this machine'}" if url.get_backend_name() != SQLITE else ""
    return f"{url.get_backend_name()} {url.database!r}{place}"
