"""A gateway's certificate in the wrong hands: made with the real authority, as a thief has it.

The real one is in the gateway's memory only, so this reads the authority from the gateway's
database and signs one that is as good.
"""

import json
import secrets
import sqlite3
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from typing import Any, Final

from byoai_gateway.authorities import Subject, open_authorities
from byoai_gateway.config import DatabaseSection, TokensSection, VaultSection
from byoai_gateway.database import Database
from byoai_gateway.sealed_secrets import open_secrets
from byoai_shared.identity import GatewayIdentity
from byoai_shared.keys import key_to_pem, new_key
from byoai_shared.link.session import LinkSession, connect
from byoai_shared.protocol.control import Hello, Role
from byoai_shared.protocol.trust import DenialSet, Trust, trust_digest
from byoai_shared.tls import Credentials, client_context

from .place import Place

NAME: Final = "stolen"
LIFE_S: Final = 3600.0


class Thief:
    """The certificate, and what its holder knows of the trust in force."""

    def __init__(self, place: Place, credentials: Credentials, services_ca_pem: bytes) -> None:
        host, port = place.address("relay.gateways")
        self._url = f"wss://{host}:{port}"
        self._context = client_context(server_ca_pem=services_ca_pem, credentials=credentials)
        self._keys = _signing_keys(place)

    @asynccontextmanager
    async def linked(self) -> AsyncGenerator[LinkSession]:
        """Link to the relay as a gateway while entered.

        Raises:
            LinkRefused: the relay takes no link with this certificate.
        """
        hello = Hello(role=Role.GATEWAY, node=NAME, instance=secrets.token_hex(8), epoch=1)
        session = await connect(self._url, ssl_context=self._context, hello=hello)
        try:
            yield session
        finally:
            session.abort()
            await session.closed

    def trust(self, ahead_s: float) -> Trust:
        """Return a TRUST of so much in the future that denies no one."""
        rules = TokensSection()
        return Trust(
            revision=int((time.time() + ahead_s) * 1000),
            base=0,
            digest=trust_digest(rules.issuer, rules.audience, self._keys, DenialSet()),
            issuer=rules.issuer,
            audience=rules.audience,
            keys=self._keys,
        )


async def steal(place: Place) -> Thief:
    """Sign a certificate with the gateway's own authority."""
    directory = place.stack.directory
    url = f"sqlite+aiosqlite:///{directory / 'gateway.db'}"
    database = await Database.open(DatabaseSection(url=url), may_create=False)
    try:
        vault = VaultSection(key_file=directory / "vault.key")
        held = await open_secrets(database, vault, may_create=False)
        services = (await open_authorities(database, held, time.time())).services
    finally:
        await database.close()
    key = new_key()
    issued = services.issue(Subject(GatewayIdentity(NAME), key.public_key(), LIFE_S), time.time())
    credentials = Credentials(issued.pem.encode(), key_to_pem(key))
    return Thief(place, credentials, services.certificate_pem.encode())


def _signing_keys(place: Place) -> tuple[dict[str, str], ...]:
    with closing(sqlite3.connect(place.stack.directory / "gateway.db")) as database:
        rows: list[tuple[Any]] = database.execute("SELECT public_jwk FROM signing_keys").fetchall()
    return tuple(json.loads(row[0]) for row in rows)
