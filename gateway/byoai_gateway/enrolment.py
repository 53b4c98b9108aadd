"""What agents get: a first identity for a join code, then certificates and tokens.

Only one who holds an agent's link key gets anything for that agent, and a certificate or token
is bound to that key. The public key is all that is taken from a signing request. A key that was
replaced gets nothing, and a renewal from one locks the agent: a second host has its state.
"""

import secrets as random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.agent_instances import (
    instances_of,
    note_instance,
    overlapping,
    shared_since,
)
from byoai_gateway.agent_limits import AgentLimits
from byoai_gateway.agent_records import (
    admit,
    insert_agent,
    models_named,
    note_fetched,
    note_old_key,
    note_renewal,
    note_token,
    owner_of_usable,
    require_unlocked,
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
from byoai_gateway.refusals import Refusal, key_replaced
from byoai_gateway.registry import Registry
from byoai_gateway.submissions import end_to_end_key, requested_key, spki
from byoai_gateway.trust import TrustSource
from byoai_shared.enrolment import (
    EnrolRequest,
    EnrolResponse,
    OtherHost,
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
            former = AgentIdentity(tunnel_id, request.replaces)
            is_replacement = await desk.registry.replace_locked(
                connection, owner, former, request.replaces_key
            )
            await desk.registry.check_room(connection, tunnel_id)
            version, accepted = await self._authentication(connection, tunnel_id, now)
            issued = desk.issuer.certificate(identity, key, now)
            token = desk.issuer.token(identity, issued.thumbprint, 1, now)
            await insert_agent(connection, identity, request, token, version)
            await add_key(connection, identity.agent_id, 1, spki(key), issued)
            await desk.audit.note(connection, owner, Action.AGENT_JOINED, subject=identity.agent_id)
        if is_replacement:
            await desk.trust.publish()
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
        count = partial(self._count, self._desk.limits.token)
        proven = await self._assertions.check(request.assertion, TOKEN_PATH, count)
        async with self._desk.database.writing() as connection:
            await admit(connection, proven.identity)
            keys = await load_keys(connection, proven.identity.agent_id)
            if standing(proven.signer, keys) is not Standing.REPLACED:
                return await self._next_token(connection, proven, request)
            refusal = await self._of_old_key(connection, proven, request.hostname)
        raise refusal

    async def _next_token(
        self, connection: AsyncConnection, proven: Proven, request: TokenRequest
    ) -> TokenResponse:
        now, identity = self._clock(), proven.identity
        await require_unlocked(connection, identity.agent_id)
        await self._confirm_signer(connection, proven, now)
        other_host = await self._note_instance(connection, identity.agent_id, request)
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
            other_host=other_host,
        )

    async def renew(self, request: RenewRequest) -> RenewResponse:
        """Give an agent a certificate for its next link key.

        Raises:
            Refusal: it is not proven who asks, or they may not have one.
        """
        count = partial(self._count, self._desk.limits.renewal)
        proven = await self._assertions.check(request.assertion, RENEW_PATH, count)
        now = self._clock()
        identity, pinned = proven.identity, request.end_to_end_certificate_pem
        key = requested_key(request.csr_pem)
        if pinned is not None:
            end_to_end_key(pinned, identity.tunnel_id, now)
        issued = self._desk.issuer.certificate(identity, key, now)
        async with self._desk.database.writing() as connection:
            owner = await admit(connection, identity)
            refusal = await self._store_key(connection, proven, request, issued)
            if refusal is None:
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
                log.info(
                    "certificate.issued",
                    tunnel_id=identity.tunnel_id,
                    agent_id=identity.agent_id,
                    generation=generation,
                )
                return self._renewed(issued, token, now)
        await self._desk.trust.publish()
        raise refusal

    async def _count(
        self, limit: Callable[[str, str], Awaitable[None]], identity: AgentIdentity
    ) -> None:
        """Count an agent's call for it and for its owner, before any writer's turn is taken."""
        async with self._desk.database.reading() as connection:
            owner = await admit(connection, identity)
        await limit(identity.agent_id, owner)

    async def _authentication(
        self, connection: AsyncConnection, tunnel_id: str, now: float
    ) -> tuple[int, list[str]]:
        """The newest authentication key's version, and all keys to accept."""
        keys = self._desk.authentication_keys
        force = await keys.settle(connection, tunnel_id, now)
        return force.newest, await keys.open_all(connection, tunnel_id, force)

    async def _confirm_signer(
        self, connection: AsyncConnection, proven: Proven, now: float
    ) -> None:
        """Note that a key which was not replaced is in use; its certificate must not be over."""
        signer = proven.signer
        await confirm_key(connection, proven.identity.agent_id, signer.generation, now)
        if signer.certificate_expires_at <= now:
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                "certificate_expired",
                "the link certificate has expired; renew it first",
            )

    async def _store_key(
        self, connection: AsyncConnection, proven: Proven, request: RenewRequest, issued: Issued
    ) -> Refusal | None:
        """Make a key the agent's next one; the refusal if the signer was replaced by another.

        That one is returned instead of raised, so that what was noted of it is kept.
        """
        agent_id, signer = proven.identity.agent_id, proven.signer
        key = spki(requested_key(request.csr_pem))
        match renewal(signer, key, await load_keys(connection, agent_id)):
            case Renewal.CLONE:
                refusal = await self._of_old_key(connection, proven, request.hostname)
                await self._desk.registry.lock_agent(connection, proven.identity, signer.generation)
                return refusal
            case Renewal.OLD_STATE:
                return await self._of_old_key(connection, proven, request.hostname)
            case Renewal.KEY_REUSED:
                raise Refusal(
                    HTTPStatus.BAD_REQUEST,
                    "key_reused",
                    "each certificate needs a new key; this one was used before",
                    param="csrPem",
                )
            case Renewal.SAME_AGAIN:
                await require_unlocked(connection, agent_id)
                await reissued(connection, agent_id, signer.generation + 1, issued)
            case Renewal.NEW_KEY:
                await require_unlocked(connection, agent_id)
                await confirm_key(connection, agent_id, signer.generation, self._clock())
                await add_key(connection, agent_id, signer.generation + 1, key, issued)
        await note_instance(connection, agent_id, request.instance, request.hostname, self._clock())
        return None

    async def _of_old_key(
        self, connection: AsyncConnection, proven: Proven, hostname: str
    ) -> Refusal:
        """Note that a key which was replaced is in use; returns the refusal for its user."""
        agent_id = proven.identity.agent_id
        await note_old_key(connection, agent_id, hostname, self._clock())
        log.error(
            "alert.link_key_reused",
            tunnel_id=proven.identity.tunnel_id,
            agent_id=agent_id,
            generation=proven.signer.generation,
            next="refused; the tunnel's page shows the agent and what its owner can do",
        )
        instances = await instances_of(connection, agent_id)
        return key_replaced(instances[0].hostname if instances else None)

    async def _note_instance(
        self, connection: AsyncConnection, agent_id: str, request: TokenRequest
    ) -> OtherHost | None:
        """Note which run of the agent's program asks; returns another that runs as well."""
        now = self._clock()
        await note_instance(connection, agent_id, request.instance, request.hostname, now)
        running = overlapping(
            await instances_of(connection, agent_id), now, self._desk.registry.instance_window_s
        )
        others = [it for it in running if it.instance != request.instance]
        return OtherHost(others[0].hostname, shared_since(running)) if others else None

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
