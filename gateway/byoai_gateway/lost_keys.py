"""Going on without a key-encryption key that is lost.

What it sealed never opens again. Users' keys are marked as to be entered again; what is the
gateway's own is forgotten and made anew: tunnels' authentication keys here, the two authorities
and the keys that sign tokens at the next start. Nothing of it happens by itself: it is for an
operator to decide, who may still find the key.
"""

from typing import Any

from sqlalchemy import Row, delete, not_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.audit import Action, Audit
from byoai_gateway.authentication_keys import AuthenticationKeys
from byoai_gateway.clock import Clock
from byoai_gateway.config import VaultSection
from byoai_gateway.database import Database
from byoai_gateway.key_ring import create_ring, load_ring
from byoai_gateway.key_use import FORGOTTEN, KeyUse, keys_in_use, owned_by_users
from byoai_gateway.revision import trust_changed
from byoai_gateway.schema import authorities, secrets, signing_keys
from byoai_gateway.sealed_secrets import SealedSecrets
from byoai_gateway.secret_owners import AUTHENTICATION_KEY, AUTHORITY, SIGNING, TUNNEL
from byoai_gateway.vault import Vault
from byoai_shared.errors import ByoaiError


class LostKeys:
    """Counts and gives up what a lost key sealed."""

    def __init__(self, database: Database, settings: VaultSection, clock: Clock) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock

    async def lost_with(self, key_id: str) -> KeyUse:
        """What does not open without a key.

        Raises:
            ByoaiError: the key is not lost, or nothing was sealed with it.
        """
        ring = load_ring(self._settings)
        if ring is not None and ring.knows(key_id):
            raise ByoaiError(
                f"key {key_id} is not lost: it is among the known keys; seal with another by "
                "`byoai-gateway keys rotate`, then take it away"
            )
        async with self._database.reading() as connection:
            in_use = await keys_in_use(connection)
        if key_id not in in_use:
            known = ", ".join(sorted(in_use)) or "none"
            raise ByoaiError(f"nothing is sealed with key {key_id}; keys in use: {known}")
        return in_use[key_id]

    async def forget(self, key_id: str) -> None:
        """Give up what a lost key sealed, in one transaction.

        A key file that is lost as a whole is made anew: what replaces the lost is sealed with it.

        Raises:
            ByoaiError: the key is not lost, or nothing was sealed with it.
        """
        await self.lost_with(key_id)
        ring = load_ring(self._settings) or create_ring(self._settings.key_file)
        tunnel_keys = AuthenticationKeys(SealedSecrets(Vault(ring)))
        now = self._clock()
        async with self._database.writing() as connection:
            await connection.execute(
                update(secrets)
                .where(secrets.c.key_id == key_id, owned_by_users())
                .values(key_id=FORGOTTEN, sealed=b"")
            )
            for row in await _own_records(connection, key_id):
                if row.owner.startswith(TUNNEL):
                    version = int(row.field.removeprefix(AUTHENTICATION_KEY))
                    tunnel_id = row.owner.removeprefix(TUNNEL)
                    await tunnel_keys.replace_lost(connection, tunnel_id, version, now)
                else:
                    await _forget_own(connection, row)
            await connection.execute(delete(secrets).where(secrets.c.key_id == key_id))
            await trust_changed(connection, now)
            await Audit(self._clock).note(
                connection, None, Action.VAULT_KEY_FORGOTTEN, subject=key_id
            )


async def _own_records(connection: AsyncConnection, key_id: str) -> list[Row[Any]]:
    query = select(secrets).where(secrets.c.key_id == key_id, not_(owned_by_users()))
    return list((await connection.execute(query)).all())


async def _forget_own(connection: AsyncConnection, row: Row[Any]) -> None:
    """Forget an authority or a signing key; the next start makes another."""
    if row.owner == SIGNING:
        await connection.execute(delete(signing_keys).where(signing_keys.c.kid == row.field))
    elif row.owner.startswith(AUTHORITY):
        name = row.owner.removeprefix(AUTHORITY)
        await connection.execute(delete(authorities).where(authorities.c.name == name))
