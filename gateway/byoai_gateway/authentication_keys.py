"""The key that tells an agent that a request comes from its owner: 256 bits, and how it changes.

A rotation must not fail a single request, though agents hear of the new key only with their
next token. So both keys are handed out, newest first, and the gateway goes on sending the old
one until every agent that could be connected has fetched the new one. An agent could be
connected only while its token lives, and it gets the keys with each token: the change-over is
complete two token lifetimes after the rotation at the latest (a renewal in between brings a
token without keys), and an agent that was off then gets only the new key when it comes back.

Once it is complete the old key is deleted by the next call that writes, before that call adds
or changes an agent: so the gateway never falls back to a key that agents no longer accept.
"""

import secrets as random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway import schema
from byoai_gateway.sealed_secrets import SealedSecrets
from byoai_gateway.secret_owners import AUTHENTICATION_KEY, TUNNEL
from byoai_gateway.vault import Place
from byoai_shared.secret import Secret

KEY_BYTES: Final = 32
SETTLE_S: Final = 5
"""The answer that brought an agent the key may be lost; it asks again within this."""
DRAIN_S: Final = 60
"""How long a link may live on after its token (section 5 of the protocol)."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What one agent has been given."""

    version: int
    fetched_at: int
    token_expires_at: int


@dataclass(frozen=True, slots=True)
class KeysInForce:
    """Which versions count now."""

    sent: int
    """The one the gateway sends."""
    accepted: tuple[int, ...]
    """Those agents are told to accept, newest first."""
    waiting_for: int
    """Agents that may be connected and do not know the newest one yet."""

    @property
    def newest(self) -> int:
        """The one that agents are to know."""
        return self.accepted[0]


def keys_in_force(versions: Sequence[int], agents: Sequence[Fetched], now: float) -> KeysInForce:
    """Decide which of a tunnel's keys to send and which to hand out."""
    newest = max(versions)
    waiting = [agent for agent in agents if _is_waited_for(agent, newest, now)]
    if not waiting:
        return KeysInForce(newest, (newest,), 0)
    accepted = sorted(versions, reverse=True)
    return KeysInForce(min(versions), tuple(accepted), len(waiting))


def _is_waited_for(agent: Fetched, newest: int, now: float) -> bool:
    if agent.token_expires_at + DRAIN_S <= now:
        return False
    return agent.version < newest or agent.fetched_at + SETTLE_S > now


class AuthenticationKeys:
    """The keys of all tunnels; callers bring the transaction."""

    def __init__(self, secrets: SealedSecrets) -> None:
        self._secrets = secrets

    async def add_first(self, connection: AsyncConnection, tunnel_id: str, now: float) -> None:
        """Make the key of a new tunnel."""
        await self._add(connection, tunnel_id, 1, now)

    async def rotate(self, connection: AsyncConnection, tunnel_id: str, now: float) -> KeysInForce:
        """Make a new key, unless the one before is still being fetched: then that one goes on."""
        force = await self.settle(connection, tunnel_id, now)
        if force.sent != force.newest:
            return force
        await self._add(connection, tunnel_id, force.newest + 1, now)
        return await self.in_force(connection, tunnel_id, now)

    async def settle(self, connection: AsyncConnection, tunnel_id: str, now: float) -> KeysInForce:
        """Delete the old key if no agent needs it any more; answers what is in force."""
        force = await self.in_force(connection, tunnel_id, now)
        for version in await self._versions(connection, tunnel_id):
            if version not in force.accepted:
                await self._remove(connection, tunnel_id, version)
        return force

    async def in_force(
        self, connection: AsyncConnection, tunnel_id: str, now: float
    ) -> KeysInForce:
        """Which keys of a tunnel count now."""
        versions = await self._versions(connection, tunnel_id)
        agents = schema.agents
        rows = await connection.execute(
            select(
                agents.c.authentication_version,
                agents.c.authentication_fetched_at,
                agents.c.token_expires_at,
            ).where(agents.c.tunnel_id == tunnel_id, agents.c.removed_at.is_(None))
        )
        return keys_in_force(versions, [Fetched(*row) for row in rows], now)

    async def open(self, connection: AsyncConnection, tunnel_id: str, version: int) -> Secret:
        """The key of one version."""
        key = await self._secrets.get(connection, _place(tunnel_id, version))
        return Secret(key.decode("ascii"))

    async def open_all(
        self, connection: AsyncConnection, tunnel_id: str, force: KeysInForce
    ) -> list[str]:
        """The keys an agent is to accept, revealed, newest first."""
        keys = [await self.open(connection, tunnel_id, version) for version in force.accepted]
        return [key.reveal() for key in keys]

    async def remove_all(self, connection: AsyncConnection, tunnel_id: str) -> None:
        """Forget the keys of a tunnel that is revoked."""
        for version in await self._versions(connection, tunnel_id):
            await self._remove(connection, tunnel_id, version)

    async def replace_lost(
        self, connection: AsyncConnection, tunnel_id: str, version: int, now: float
    ) -> None:
        """Forget a key that does not open any more; a tunnel is not left without any.

        The new one counts at once: agents accept it with their next token.
        """
        await self._remove(connection, tunnel_id, version)
        if not await self._versions(connection, tunnel_id):
            await self._add(connection, tunnel_id, version + 1, now)

    async def _versions(self, connection: AsyncConnection, tunnel_id: str) -> list[int]:
        table = schema.authentication_keys
        rows = await connection.scalars(
            select(table.c.version).where(table.c.tunnel_id == tunnel_id)
        )
        return list(rows)

    async def _add(
        self, connection: AsyncConnection, tunnel_id: str, version: int, now: float
    ) -> None:
        await connection.execute(
            insert(schema.authentication_keys).values(
                tunnel_id=tunnel_id, version=version, created_at=int(now)
            )
        )
        key = random.token_urlsafe(KEY_BYTES).encode("ascii")
        await self._secrets.put(connection, _place(tunnel_id, version), key)

    async def _remove(self, connection: AsyncConnection, tunnel_id: str, version: int) -> None:
        table = schema.authentication_keys
        await connection.execute(
            delete(table).where(table.c.tunnel_id == tunnel_id, table.c.version == version)
        )
        await self._secrets.delete(connection, _place(tunnel_id, version))


def _place(tunnel_id: str, version: int) -> Place:
    return Place(f"{TUNNEL}{tunnel_id}", f"{AUTHENTICATION_KEY}{version}")
