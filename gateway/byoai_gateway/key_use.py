"""Which key-encryption keys the database needs, and for what."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, case, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.schema import secrets
from byoai_gateway.secret_owners import LONG_USER, TUNNEL, USER

FORGOTTEN: Final = ""
"""Stands for the key of records that are given up; no key has this id.

Such a record stays, empty, so that its user is asked to enter it again.
"""


@dataclass(frozen=True, slots=True)
class KeyUse:
    """How many records a key sealed."""

    users: int
    tunnels: int
    gateway: int
    """The authorities' keys and those that sign tokens."""

    @property
    def is_own(self) -> bool:
        """Whether the gateway itself needs it."""
        return self.tunnels + self.gateway > 0

    def __str__(self) -> str:
        return (
            f"{self.users} keys of users, {self.tunnels} keys of tunnels and "
            f"{self.gateway} of the gateway itself"
        )


async def keys_in_use(connection: AsyncConnection) -> Mapping[str, KeyUse]:
    """What each key sealed, by the key's id."""
    users, tunnels = owned_by_users(), secrets.c.owner.startswith(TUNNEL, autoescape=True)
    rows = await connection.execute(
        select(
            secrets.c.key_id,
            func.sum(case((users, 1), else_=0)).label("users"),
            func.sum(case((tunnels, 1), else_=0)).label("tunnels"),
            func.count().label("records"),
        )
        .where(secrets.c.key_id != FORGOTTEN)
        .group_by(secrets.c.key_id)
    )
    return {
        row.key_id: KeyUse(row.users, row.tunnels, row.records - row.users - row.tunnels)
        for row in rows
    }


def owned_by_users() -> ColumnElement[bool]:
    """The condition that a record is a user's own."""
    return or_(
        secrets.c.owner.startswith(USER, autoescape=True),
        secrets.c.owner.startswith(LONG_USER, autoescape=True),
    )
