"""How long records of requests and of changes are kept; then they are deleted, some at a time."""

from typing import Final

from sqlalchemy import Column, Table, delete, select

from byoai_gateway.database import Database
from byoai_gateway.provider_config import RecordsSection
from byoai_gateway.schema import audit_log, usage_records

_SOME: Final = 5_000
"""A transaction's worth: nobody who writes waits for long."""
_DAY_S: Final = 86_400


async def forget_old_records(database: Database, keep: RecordsSection, now: float) -> None:
    """Delete what is older than the settings allow."""
    await _forget(
        database,
        usage_records,
        usage_records.c.record_id,
        usage_records.c.started_at,
        int(now) - keep.usage_days * _DAY_S,
    )
    await _forget(
        database,
        audit_log,
        audit_log.c.entry_id,
        audit_log.c.at,
        int(now) - keep.audit_days * _DAY_S,
    )


async def _forget(
    database: Database, table: Table, key: Column[int], at: Column[int], before: int
) -> None:
    old = select(key).where(at < before).limit(_SOME)
    deleted = _SOME
    while deleted == _SOME:
        async with database.writing() as connection:
            deleted = (await connection.execute(delete(table).where(key.in_(old)))).rowcount
