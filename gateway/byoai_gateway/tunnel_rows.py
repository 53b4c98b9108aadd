"""Tunnels and agents as values, and the conditions by which their rows are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, and_

from byoai_gateway.agent_instances import Instance
from byoai_gateway.schema import tunnels


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the user said of the model behind a tunnel."""

    name: str
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A registered tunnel that is not revoked."""

    tunnel_id: str
    user_id: str
    model: ModelInfo
    created_at: int


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent of a tunnel that was not removed."""

    agent_id: str
    hostname: str
    agent_version: str
    end_to_end_pem: str
    generation: int
    enrolled_at: int
    token_issued_at: int
    token_expires_at: int
    certificate_expires_at: int
    locked_at: int | None = None
    """Since when a key that had been replaced, and was used again, locks it."""
    old_key_used_at: int | None = None
    old_key_host: str | None = None
    """What the host that used it calls itself."""
    runs: tuple[Instance, ...] = ()
    """Those of its program that are under way at the same time, on as many hosts."""


NEWEST_FIRST: Final[Sequence[ColumnElement[Any]]] = (
    tunnels.c.created_at.desc(),
    tunnels.c.tunnel_id,
)


def is_owned(user_id: str) -> ColumnElement[bool]:
    """The condition that a tunnel is a user's and not revoked."""
    return and_(tunnels.c.user_id == user_id, tunnels.c.revoked_at.is_(None))


def is_usable(tunnel_id: str) -> ColumnElement[bool]:
    """The condition that a tunnel is that one, and not revoked."""
    return and_(tunnels.c.tunnel_id == tunnel_id, tunnels.c.revoked_at.is_(None))


def tunnel_from(row: Row[Any]) -> Tunnel:
    """A row of `tunnels` as a value."""
    return Tunnel(
        tunnel_id=row.tunnel_id,
        user_id=row.user_id,
        model=ModelInfo(row.model_name, tuple(row.capabilities)),
        created_at=row.created_at,
    )


def agent_from(row: Row[Any]) -> Agent:
    """A row of `agents`, with the expiry of its link certificate, as a value."""
    return Agent(
        agent_id=row.agent_id,
        hostname=row.hostname,
        agent_version=row.agent_version,
        end_to_end_pem=row.end_to_end_pem,
        generation=row.generation,
        enrolled_at=row.enrolled_at,
        token_issued_at=row.token_issued_at,
        token_expires_at=row.token_expires_at,
        certificate_expires_at=row.certificate_expires_at,
        locked_at=row.locked_at,
        old_key_used_at=row.old_key_used_at,
        old_key_host=row.old_key_host,
    )
