"""The keys that sign tunnel tokens: made, published ahead, rotated, retired, dropped.

A new key is known to the relays a day before it signs (`publish_ahead_s`), so that none of them
meets a token it cannot check. The old one stays known until its last token has expired. A key
that leaked is dropped at once: tokens it signed stop working when the relays hear of it, and
agents fetch new ones.
"""

import secrets as random
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway import schema
from byoai_gateway.audit import Action, Audit
from byoai_gateway.clock import Clock
from byoai_gateway.config import TokensSection
from byoai_gateway.database import Database
from byoai_gateway.revision import trust_changed
from byoai_gateway.sealed_secrets import SealedSecrets
from byoai_gateway.secret_owners import SIGNING
from byoai_gateway.vault import Place
from byoai_shared.errors import ByoaiError
from byoai_shared.keys import key_from_pem, key_to_pem, new_key
from byoai_shared.logs import get_logger
from byoai_shared.tokens import LEEWAY_S, MAX_LIFE_S, TunnelClaims, public_jwk, sign_token

log = get_logger("gateway")


class UnknownSigningKey(ByoaiError):
    """There is no signing key of that id."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key and from when on it signs."""

    kid: str
    active_from: int


def active_key(keys: Sequence[SigningKey], now: float) -> SigningKey | None:
    """The key that signs: the newest whose time has come."""
    active = [key for key in keys if key.active_from <= now]
    return max(active, key=_order) if active else None


def successor_from(keys: Sequence[SigningKey], now: float, rules: TokensSection) -> int | None:
    """From when on a key to be made now would sign; None while none is due."""
    newest = max(keys, key=_order, default=None)
    if newest is None or active_key(keys, now) is None:
        return int(now)  # there is nothing to sign with: no time to publish ahead
    retires_at = newest.active_from + rules.rotate_after_s
    if now < retires_at - rules.publish_ahead_s:
        return None
    return int(max(retires_at, now + rules.publish_ahead_s))


def retired_keys(keys: Sequence[SigningKey], now: float) -> list[SigningKey]:
    """Keys whose successor has signed for so long that none of their tokens can live."""
    return [
        key
        for key in keys
        if any(
            _order(other) > _order(key) and other.active_from + MAX_LIFE_S + LEEWAY_S < now
            for other in keys
        )
    ]


def _order(key: SigningKey) -> tuple[int, str]:
    return key.active_from, key.kid


class SigningKeys:
    """The keys in the database, and the one that signs, opened."""

    def __init__(
        self,
        database: Database,
        secrets: SealedSecrets,
        audit: Audit,
        rules: TokensSection,
        clock: Clock,
    ) -> None:
        self._database = database
        self._audit = audit
        self._secrets = secrets
        self._rules = rules
        self._clock = clock
        self._keys: list[SigningKey] = []
        self._opened: dict[str, ec.EllipticCurvePrivateKey] = {}

    @property
    def known(self) -> list[SigningKey]:
        """The keys that relays are told to trust, the oldest first."""
        return sorted(self._keys, key=_order)

    async def keep_up(self) -> None:
        """Make the key that is due, retire those that are done, and load what there is.

        To be called from time to time, and whenever the trust's revision has moved: another
        gateway or the `keys drop` command may have changed the keys.
        """
        now = self._clock()
        async with self._database.writing() as connection:
            keys = await _keys(connection)
            begins = successor_from(keys, now, self._rules)
            if begins is not None:
                keys.append(await self._make(connection, begins))
            for key in retired_keys(keys, now):
                await self._delete(connection, key.kid)
                keys.remove(key)
            opened = {key.kid: await self._open(connection, key.kid) for key in keys}
        self._keys, self._opened = keys, opened

    async def drop(self, kid: str) -> None:
        """Stop trusting a key at once; another one signs from now on.

        Raises:
            UnknownSigningKey: there is no such key.
        """
        async with self._database.writing() as connection:
            keys = await _keys(connection)
            if kid not in {key.kid for key in keys}:
                known = ", ".join(key.kid for key in keys)
                raise UnknownSigningKey(f"there is no signing key {kid}; there are {known}")
            await self._delete(connection, kid)
            await self._audit.note(connection, None, Action.SIGNING_KEY_DROPPED, subject=kid)
        log.warning("signing_key.dropped", kid=kid, next="tokens it signed are refused")
        await self.keep_up()

    def sign(self, claims: TunnelClaims) -> str:
        """Make a tunnel token with the key that signs now."""
        key = active_key(self._keys, self._clock())
        if key is None:
            raise UnknownSigningKey("no signing key is loaded; call keep_up first")
        return sign_token(claims, self._opened[key.kid], key.kid)

    async def _make(self, connection: AsyncConnection, active_from: int) -> SigningKey:
        kid = f"tk-{random.token_hex(6)}"
        key = new_key()
        await connection.execute(
            insert(schema.signing_keys).values(
                kid=kid, public_jwk=public_jwk(kid, key.public_key()), active_from=active_from
            )
        )
        await self._secrets.put(connection, Place(SIGNING, kid), key_to_pem(key))
        await trust_changed(connection, self._clock())
        log.info("signing_key.made", kid=kid)
        return SigningKey(kid, active_from)

    async def _delete(self, connection: AsyncConnection, kid: str) -> None:
        await connection.execute(
            delete(schema.signing_keys).where(schema.signing_keys.c.kid == kid)
        )
        await self._secrets.delete(connection, Place(SIGNING, kid))
        await trust_changed(connection, self._clock())

    async def _open(self, connection: AsyncConnection, kid: str) -> ec.EllipticCurvePrivateKey:
        known = self._opened.get(kid)
        if known is not None:
            return known
        return key_from_pem(await self._secrets.get(connection, Place(SIGNING, kid)))


async def _keys(connection: AsyncConnection) -> list[SigningKey]:
    table = schema.signing_keys
    rows = await connection.execute(select(table.c.kid, table.c.active_from))
    return [SigningKey(row.kid, row.active_from) for row in rows]
