"""What each request used: noted without waiting, written by one task in batches.

A database that is away costs no request anything: records wait for it, as many as there is room
for, and what finds no room is counted. A batch whose fate is unknown, because the connection was
lost while it was committed, is written again, and no record of it twice. No prompt, no answer and
no key stands in a record.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count, islice
from typing import Any, Final

import msgspec
from sqlalchemy import BigInteger, Integer, String
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect

from byoai_gateway.database import Database
from byoai_gateway.schema import usage_records
from byoai_shared.logs import get_logger

LINGER_S: Final = 1.0
BATCH: Final = 200
ROOM: Final = 20_000
LAST_WRITE_S: Final = 5.0
"""How long a gateway that stops waits for the database."""
_LONGEST_PAUSE_S: Final = 5.0
_PATIENCE: Final = 3
"""So often a batch may fail at a database that answers; then its rows are tried one by one."""

log = get_logger("gateway")


_PROCESS: Final = secrets.token_hex(8)
_numbers: Final = count()


def _next_key() -> str:
    """Return a name that no other record has; in order, which costs an index the least."""
    return f"{_PROCESS}{next(_numbers):016x}"


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a user, as it ended; in the order of the table's columns."""

    record_key: str = msgspec.field(default_factory=_next_key)
    """Its own name, by which the database knows it again; a request's id is the client's choice."""
    request_id: str
    user_id: str
    started_at: int
    """Unix seconds."""
    endpoint: str
    provider: str
    """The one that answered, or was asked last."""
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None
    """US dollars, where the provider says it."""
    first_token_ms: int | None = None
    duration_ms: int
    attempts: int
    fallback_reason: str | None = None
    outcome: str
    """`ok`, the kind of a failure, the code of a refusal, `client_left`, `broken_off` or
    `internal_error`."""


class UsageLog:
    """Records on their way into the database."""

    def __init__(self, database: Database, *, room: int = ROOM, linger_s: float = LINGER_S) -> None:
        self._database = database
        # Compiled once: for each row the compiler's way of binding costs as much as the insert.
        self._insertion = insertion(database.dialect)
        self._room = room
        self._linger_s = linger_s
        self._waiting: deque[UsageRecord] = deque()
        self._is_enough = asyncio.Event()
        self._stopping = asyncio.Event()
        self._writing = asyncio.Lock()
        self._failures = 0
        self._refusals = 0
        self.lost = 0
        """Records that found no room, or that the database would not take."""
        self._reported = 0
        self._is_loss_told = False

    @property
    def waiting(self) -> int:
        """Records not yet written."""
        return len(self._waiting)

    def add(self, record: UsageRecord) -> None:
        """Note a request; never waits, never fails."""
        if len(self._waiting) >= self._room:
            self.lost += 1
            return
        self._waiting.append(record)
        if len(self._waiting) >= BATCH:
            self._is_enough.set()

    @asynccontextmanager
    async def written(self) -> AsyncGenerator[None]:
        """Write what is noted while the block runs, and at its end what is left."""
        writer = asyncio.create_task(self._write_on())
        try:
            yield
        finally:
            # Told, not cancelled, so that no transaction is torn; unless it takes too long.
            self._stopping.set()
            self._is_enough.set()
            try:
                await asyncio.wait((writer,), timeout=LAST_WRITE_S)
            finally:
                writer.cancel()
                await asyncio.wait((writer,))
                self.lost += len(self._waiting)
                self._waiting.clear()
                self._report_lost(is_over=True)

    async def flush(self) -> bool:
        """Write all that waits; answers whether nothing is left of it."""
        async with self._writing:
            while self._waiting:
                batch = tuple(islice(self._waiting, BATCH))
                try:
                    refused = await self._write(batch)
                except Exception as error:  # noqa: BLE001 -- each driver has its own
                    self._note_failure(error)
                    return False
                self._note_written(len(batch), refused)
        return True

    async def _write_on(self) -> None:
        while not self._stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_enough.wait(), self._linger_s)
            self._is_enough.clear()
            is_written = await self.flush()
            self._report_lost(is_over=is_written)
            if not is_written and not self._stopping.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), self._pause_s())
        await self.flush()

    async def _write(self, batch: Sequence[UsageRecord]) -> int:
        """Write a batch; answers how many of it the database would not take."""
        try:
            await self._insert(batch)
        except Exception:
            await self._database.ping()  # raises if it is away, which is not the batch's fault
            self._refusals += 1
            if self._refusals < _PATIENCE:
                raise
            return await self._write_singly(batch)
        return 0

    async def _write_singly(self, batch: Sequence[UsageRecord]) -> int:
        refused = 0
        for record in batch:
            try:
                await self._insert((record,))
            except Exception:  # noqa: BLE001 -- each driver has its own
                await self._database.ping()
                refused += 1
        return refused

    async def _insert(self, batch: Sequence[UsageRecord]) -> None:
        async with self._database.writing() as connection:
            await connection.exec_driver_sql(self._insertion, [_row(record) for record in batch])

    def _note_written(self, count: int, refused: int) -> None:
        for _ in range(count):
            self._waiting.popleft()
        if self._failures:
            log.info("usage.written_again", count=count - refused)
        self.lost += refused
        self._failures = self._refusals = 0

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        log.warning(
            "usage.not_written",
            reason=type(error).__name__,
            count=len(self._waiting),
            retry_in_s=self._pause_s(),
            next="see that the database runs and has room; records wait in memory until then",
        )

    def _pause_s(self) -> float:
        """Grows with every failure."""
        return min(_LONGEST_PAUSE_S, self._linger_s * 2.0 ** min(self._failures, 10))

    def _report_lost(self, *, is_over: bool) -> None:
        """Log that records are lost when it begins, and how many more when it is over."""
        missing = self.lost - self._reported
        if missing and (is_over or not self._is_loss_told):
            log.error("usage.lost", count=missing, next="see that the database runs and has room")
            self._reported, self._is_loss_told = self.lost, True
        if is_over:
            self._is_loss_told = False


_COLUMNS: Final = tuple(usage_records.c[it.name] for it in msgspec.structs.fields(UsageRecord))
_LENGTHS: Final = [
    (at, it.type.length or 0) for at, it in enumerate(_COLUMNS) if isinstance(it.type, String)
]
_LARGEST: Final = [
    (at, 2**63 - 1 if isinstance(it.type, BigInteger) else 2**31 - 1)
    for at, it in enumerate(_COLUMNS)
    if isinstance(it.type, Integer)
]


def insertion(dialect: Dialect) -> str:
    """Write the statement that takes rows as `_row` makes them; a row that is there stays.

    Raises:
        RuntimeError: its values would stand in another order than a row's.
    """
    make = postgresql.insert if dialect.name == "postgresql" else sqlite.insert
    names = [column.name for column in _COLUMNS]
    again = make(usage_records).on_conflict_do_nothing(index_elements=["record_key"])
    compiled = again.inline().compile(dialect=dialect, column_keys=names)
    if compiled.positiontup != names:
        message = (
            f"{dialect.name}/{dialect.driver} takes the values of a usage row in another order"
        )
        raise RuntimeError(message)
    return str(compiled)


def _row(record: UsageRecord) -> tuple[Any, ...]:
    """Make it fit its columns: a name or number that a client or provider made up is cut."""
    row = list(msgspec.structs.astuple(record))
    for at, length in _LENGTHS:
        text = row[at]
        if text and not (text.isascii() and text.isprintable() and len(text) <= length):
            row[at] = _clean(text)[:length]
    for at, largest in _LARGEST:
        number = row[at]
        if number is not None and not -largest <= number <= largest:
            row[at] = max(-largest, min(largest, number))
    return tuple(row)


def _clean(text: str) -> str:
    """PostgreSQL has no NUL in a text, and no half of a surrogate pair."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
