"""How long records of requests and of changes are kept; then they are deleted, some at a time.

Revoked tunnels are kept as long as the record of their revocation, and until no denial of them is
in force; their agents go with them.
"""

from collections.abc import Callable
from typing import Final

from sqlalchemy import select

from byoai_gateway.database import Database
from byoai_gateway.deletion import delete_older
from byoai_gateway.provider_config import RecordsSection
from byoai_gateway.schema import audit_log, denials, tunnels, usage_records

_DAY_S: Final = 86_400


async def forget_old_records(
    database: Database,
    keep: RecordsSection,
    now: float,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Delete what is older than the settings allow; `is_over` is asked now and then, to stop."""
    used_before = int(now) - keep.usage_days * _DAY_S
    await delete_older(database, usage_records.c.started_at, used_before, is_over)
    changed_before = int(now) - keep.audit_days * _DAY_S
    await delete_older(database, audit_log.c.at, changed_before, is_over)
    # Those of the same tunnel only: PostgreSQL compares each tunnel with all of them, one by one,
    # where they are too many for its memory for one query.
    denied = select(denials.c.subject).where(
        denials.c.subject == tunnels.c.tunnel_id, denials.c.denied_until >= int(now)
    )
    is_not_denied = tunnels.c.tunnel_id.not_in(denied)
    await delete_older(database, tunnels.c.revoked_at, changed_before, is_over, is_not_denied)
