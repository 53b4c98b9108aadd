"""What agents get: a first identity for a join code, then certificates and tokens.

Only one who holds an agent's link key gets anything for that agent, and a certificate or token
is bound to that key. The public key is all that is taken from a signing request. A renewal from
a key that was replaced locks the tunnel: somebody has a copy of the agent's state.
"""

import secrets as random
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.agent_limits import AgentLimits
from byoai_gateway.agent_records import (
    admit,
    insert_agent,
    models_named,
    note_fetched,
    note_renewal,
    note_token,
    owner_of_usable,
)
from byoai_gateway.assertions import AssertionCheck, Proven
from byoai_gateway.audit import Action, Audit
from byoai_gateway.authentication_keys import AuthenticationKeys
from byoai_gateway.authorities import Issued
from byoai_gateway.clock import Clock
from byoai_gateway.database import Database
from byoai_gateway.issuing import Issuer, Token
from byoai_gateway.join_codes import check_code, use_code
from byoai_gateway.link_keys import (
    Renewal,
    Standing,
    add_key,
    confirm_key,
    load_keys,
    reissued,
    renewal,
    standing,
)
from byoai_gateway.refusals import Refusal, tunnel_locked
from byoai_gateway.registry import Registry
from byoai_gateway.submissions import end_to_end_key, requested_key, spki
from byoai_gateway.trust import TrustSource
from byoai_shared.enrolment import (
    EnrolRequest,
    EnrolResponse,
    RenewRequest,
    RenewResponse,
    TokenRequest,
    TokenResponse,
)
from byoai_shared.identity import AgentIdentity, key_fingerprint
from byoai_shared.logs import get_logger

RENEW_PATH: Final = "/agent/v1/renew"
TOKEN_PATH: Final = "/agent/v1/token"  # noqa: S105 -- a path

log = get_logger("gateway")


@dataclass(frozen=True, slots=True)
class Desk:
    """What enrolment works with."""

    database: Database
    registry: Registry
    authentication_keys: AuthenticationKeys
    issuer: Issuer
    trust: TrustSource
    audit: Audit
    limits: AgentLimits


@dataclass(frozen=True, slots=True)
class Told:
    """What every agent is told of its surroundings."""

    relays: tuple[str, ...]
    services_ca_pem: str
    gateway_ca_pem: str | None


class Enrolment:
    """Answers the calls of agents; each is one transaction."""

    def __init__(self, desk: Desk, assertions: AssertionCheck, told: Told, clock: Clock) -> None:
        self._desk = desk
        self._assertions = assertions
        self._told = told
        self._clock = clock

    async def enrol(self, request: EnrolRequest) -> EnrolResponse:
        """Make an agent out of a join code.

        Raises:
            Refusal: the code is not good, or what came with it is not.
        """
        now = self._clock()
        desk, tunnel_id = self._desk, request.tunnel_id
        # Before signatures are verified, and before other writers have to wait for this one.
        async with desk.database.reading() as connection:
            await check_code(connection, tunnel_id, request.secret, now)
        key = requested_key(request.csr_pem)
        pinned = end_to_end_key(request.end_to_end_certificate_pem, tunnel_id, now)
        identity = AgentIdentity(tunnel_id, f"a{random.token_hex(10)}")
        async with desk.database.writing() as connection:
            await use_code(connection, tunnel_id, request.secret, now)
            owner = await owner_of_usable(connection, tunnel_id)
            await desk.registry.check_room(connection, tunnel_id)
            version, accepted = await self._authentication(connection, tunnel_id, now)
            issued = desk.issuer.certificate(identity, key, now)
            token = desk.issuer.token(identity, issued.thumbprint, 1, now)
            await insert_agent(connection, identity, request, token, version)
            await add_key(connection, identity.agent_id, 1, spki(key), issued)
            await desk.audit.note(connection, owner, Action.AGENT_JOINED, subject=identity.agent_id)
        log.info("agent.enrolled", tunnel_id=tunnel_id, agent_id=identity.agent_id)
        return EnrolResponse(
            agent_id=identity.agent_id,
            certificate_pem=issued.pem,
            relays=list(self._told.relays),
            services_ca_pem=self._told.services_ca_pem,
            gateway_ca_pem=self._told.gateway_ca_pem,
            owner=owner,
            server_time=int(now),
            authentication_keys=accepted,
            token=token.text,
            token_expires_at=token.expires_at,
            certificate_expires_at=issued.expires_at,
            key_fingerprint=key_fingerprint(pinned),
        )

    async def token(self, request: TokenRequest) -> TokenResponse:
        """Give an agent its next token, and the authentication keys to accept.

        Raises:
            Refusal: it is not proven who asks, or they may not have one.
        """
        proven = await self._assertions.check(request.assertion, TOKEN_PATH)
        await self._desk.limits.token(proven.identity.agent_id, await self._owner(proven))
        now = self._clock()
        identity = proven.identity
        async with self._desk.database.writing() as connection:
            await admit(connection, identity)
            await self._check_signer(connection, proven, now)
            version, accepted = await self._authentication(connection, identity.tunnel_id, now)
            token = self._desk.issuer.token(
                identity, proven.signer.certificate_thumbprint, proven.signer.generation, now
            )
            await note_token(connection, identity.agent_id, token)
            await note_fetched(connection, identity.agent_id, version, now)
            registered, preferred = await models_named(connection, identity.tunnel_id)
        return TokenResponse(
            token=token.text,
            token_expires_at=token.expires_at,
            authentication_keys=accepted,
            relays=list(self._told.relays),
            server_time=int(now),
            registered_model=registered,
            preferred_model=preferred,
        )

    async def renew(self, request: RenewRequest) -> RenewResponse:
        """Give an agent a certificate for its next link key.

        Raises:
            Refusal: it is not proven who asks, or they may not have one.
        """
        proven = await self._assertions.check(request.assertion, RENEW_PATH)
        await self._desk.limits.renewal(proven.identity.agent_id, await self._owner(proven))
        now = self._clock()
        identity, pinned = proven.identity, request.end_to_end_certificate_pem
        key = requested_key(request.csr_pem)
        if pinned is not None:
            end_to_end_key(pinned, identity.tunnel_id, now)
        issued = self._desk.issuer.certificate(identity, key, now)
        async with self._desk.database.writing() as connection:
            owner = await admit(connection, identity)
            if await self._store_key(connection, proven, spki(key), issued):
                generation = proven.signer.generation + 1
                token = self._desk.issuer.token(identity, issued.thumbprint, generation, now)
                await note_token(connection, identity.agent_id, token)
                if await note_renewal(connection, identity.agent_id, generation, pinned):
                    await self._desk.audit.note(
                        connection,
                        owner,
                        Action.AGENT_CERTIFICATE_CHANGED,
                        subject=identity.agent_id,
                    )
            else:
                token = None
                await self._desk.registry.lock(connection, identity.tunnel_id)
        if token is None:
            raise await self._alarmed(proven)
        log.info(
            "certificate.issued",
            tunnel_id=identity.tunnel_id,
            agent_id=identity.agent_id,
            generation=proven.signer.generation + 1,
        )
        return self._renewed(issued, token, now)

    async def _owner(self, proven: Proven) -> str:
        """Whose agent it is, before any writer's turn is taken for it."""
        async with self._desk.database.reading() as connection:
            return await admit(connection, proven.identity)

    async def _authentication(
        self, connection: AsyncConnection, tunnel_id: str, now: float
    ) -> tuple[int, list[str]]:
        """The newest authentication key's version, and all keys to accept."""
        keys = self._desk.authentication_keys
        force = await keys.settle(connection, tunnel_id, now)
        return force.newest, await keys.open_all(connection, tunnel_id, force)

    async def _check_signer(self, connection: AsyncConnection, proven: Proven, now: float) -> None:
        """Refuse a token to a key that was replaced or whose certificate is over."""
        agent_id, signer = proven.identity.agent_id, proven.signer
        match standing(signer, await load_keys(connection, agent_id)):
            case Standing.REPLACED:
                raise Refusal(
                    HTTPStatus.FORBIDDEN,
                    "key_replaced",
                    "this key was replaced by a newer one; if this host's state was restored "
                    "from a copy, remove it and join again with a new code",
                )
            case Standing.CURRENT:
                await confirm_key(connection, agent_id, signer.generation, now)
            case Standing.PREVIOUS:
                pass
        if signer.certificate_expires_at <= now:
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                "certificate_expired",
                "the link certificate has expired; renew it first",
            )

    async def _store_key(
        self, connection: AsyncConnection, proven: Proven, key: bytes, issued: Issued
    ) -> bool:
        """Make a key the agent's next one; False when the signer was replaced by another."""
        agent_id, signer = proven.identity.agent_id, proven.signer
        match renewal(signer, key, await load_keys(connection, agent_id)):
            case Renewal.CLONE:
                return False
            case Renewal.KEY_REUSED:
                raise Refusal(
                    HTTPStatus.BAD_REQUEST,
                    "key_reused",
                    "each certificate needs a new key; this one was used before",
                    param="csrPem",
                )
            case Renewal.SAME_AGAIN:
                await reissued(connection, agent_id, signer.generation + 1, issued)
            case Renewal.NEW_KEY:
                await confirm_key(connection, agent_id, signer.generation, self._clock())
                await add_key(connection, agent_id, signer.generation + 1, key, issued)
        return True

    async def _alarmed(self, proven: Proven) -> Refusal:
        """Tell the operator and the relays of a copied agent; answers what to tell the caller."""
        log.error(
            "alert.link_key_reused",
            tunnel_id=proven.identity.tunnel_id,
            agent_id=proven.identity.agent_id,
            generation=proven.signer.generation,
            next="the tunnel is locked until its owner registers a new one",
        )
        await self._desk.trust.refresh()
        return tunnel_locked()

    def _renewed(self, issued: Issued, token: Token, now: float) -> RenewResponse:
        return RenewResponse(
            certificate_pem=issued.pem,
            services_ca_pem=self._told.services_ca_pem,
            relays=list(self._told.relays),
            certificate_expires_at=issued.expires_at,
            server_time=int(now),
            token=token.text,
            token_expires_at=token.expires_at,
        )
