"""Join codes in the database: made, and used once.

Only the hash of a code's secret is kept. Using one is a single UPDATE whose row count decides,
so of any number of tries at once exactly one wins.
"""

import hashlib
import secrets as random
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.database import Database
from byoai_gateway.deletion import delete_older
from byoai_gateway.refusals import Refusal
from byoai_gateway.schema import join_codes
from byoai_shared.secret import Secret

_SECRET_BYTES: Final = 32
_KEPT_S: Final = 86_400
"""How long a code that is over is remembered, to tell a person why it does not work."""


async def make_code(connection: AsyncConnection, tunnel_id: str, expires_at: int) -> Secret:
    """Make a code for a tunnel; its secret is known to nobody but the caller."""
    secret = Secret(random.token_urlsafe(_SECRET_BYTES))
    await connection.execute(
        insert(join_codes).values(
            secret_hash=_hash(secret.reveal()), tunnel_id=tunnel_id, expires_at=expires_at
        )
    )
    return secret


async def check_code(connection: AsyncConnection, tunnel_id: str, secret: str, now: float) -> None:
    """Refuse a code that cannot be used; it only reads, so a stranger's guess costs little.

    Raises:
        Refusal: it was used, has expired, or never existed.
    """
    usable = await connection.scalar(
        select(join_codes.c.tunnel_id).where(*_is_usable(tunnel_id, secret, now))
    )
    if usable is None:
        raise await _why(connection, tunnel_id, secret)


async def use_code(connection: AsyncConnection, tunnel_id: str, secret: str, now: float) -> None:
    """Use a code up; it counts when the caller's transaction is committed.

    Raises:
        Refusal: it was used, has expired, or never existed.
    """
    used = await connection.execute(
        update(join_codes).where(*_is_usable(tunnel_id, secret, now)).values(used_at=int(now))
    )
    if used.rowcount != 1:
        raise await _why(connection, tunnel_id, secret)


async def withdraw_codes(connection: AsyncConnection, tunnel_id: str) -> None:
    """Make every unused code of a tunnel worthless."""
    await connection.execute(
        delete(join_codes).where(
            join_codes.c.tunnel_id == tunnel_id, join_codes.c.used_at.is_(None)
        )
    )


async def forget_old_codes(
    database: Database, now: float, is_over: Callable[[], bool] = lambda: False
) -> None:
    """Drop codes that have been over for long; `is_over` is asked now and then, to stop."""
    await delete_older(database, join_codes.c.expires_at, int(now) - _KEPT_S, is_over)


def _is_usable(tunnel_id: str, secret: str, now: float) -> tuple[ColumnElement[bool], ...]:
    return (
        join_codes.c.secret_hash == _hash(secret),
        join_codes.c.tunnel_id == tunnel_id,
        join_codes.c.used_at.is_(None),
        join_codes.c.expires_at > now,
    )


async def _why(connection: AsyncConnection, tunnel_id: str, secret: str) -> Refusal:
    row = (
        await connection.execute(
            select(join_codes.c.used_at).where(
                join_codes.c.secret_hash == _hash(secret), join_codes.c.tunnel_id == tunnel_id
            )
        )
    ).one_or_none()
    if row is None:
        return Refusal(
            HTTPStatus.FORBIDDEN,
            "join_code_unknown",
            "this join code is not known; get a new one in the settings",
        )
    if row.used_at is not None:
        return Refusal(
            HTTPStatus.GONE,
            "join_code_used",
            "this join code was used already; each code is good for one agent, get a new one",
        )
    return Refusal(
        HTTPStatus.GONE,
        "join_code_expired",
        "this join code has expired; get a new one in the settings",
    )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
