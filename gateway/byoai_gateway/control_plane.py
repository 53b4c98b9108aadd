"""The control plane put together: database, vault, authorities, keys, and what keeps them up.

Everything that lives as long as the gateway is owned here and ended here.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from byoai_gateway.agent_limits import AgentLimits
from byoai_gateway.assertions import AssertionCheck
from byoai_gateway.audit import Audit
from byoai_gateway.authentication_keys import AuthenticationKeys
from byoai_gateway.authorities import Authorities, open_authorities
from byoai_gateway.clock import Clock
from byoai_gateway.config import GatewayConfig
from byoai_gateway.config_check import check
from byoai_gateway.database import Database, DatabaseUnavailable
from byoai_gateway.enrolment import Desk, Enrolment, Told
from byoai_gateway.issuing import Issuer
from byoai_gateway.join_codes import forget_old_codes
from byoai_gateway.jwks import FIRST_KEYS_EVERY_S, JwksKeys
from byoai_gateway.name_claim import REFRESH_S, NameClaim
from byoai_gateway.own_identity import OwnIdentity
from byoai_gateway.preferences.store import PreferenceStore
from byoai_gateway.records import forget_old_records
from byoai_gateway.registry import Registry
from byoai_gateway.sealed_secrets import SealedSecrets, open_secrets
from byoai_gateway.service_certificates import ServiceCertificates
from byoai_gateway.signing import SigningKeys
from byoai_gateway.trust import TrustSource
from byoai_gateway.tunnel_lookup import TunnelLookup
from byoai_gateway.usage import UsageLog
from byoai_gateway.user_limits import UserLimits
from byoai_gateway.users import Users
from byoai_shared.errors import ByoaiError, ConfigError
from byoai_shared.logs import get_logger
from byoai_shared.private_files import check_directory

_LOOK_S: Final = 1.0
"""How soon a change made by another process (a dropped key) is published by this one."""
_RENEW_S: Final = 60.0
_TIDY_S: Final = 60.0

log = get_logger("gateway")


@dataclass(frozen=True, slots=True)
class PrivateCa:
    """The private CA of the gateway's own HTTPS certificate."""

    pem: str
    sha256: bytes
    """Of the certificate's DER: what join codes carry."""


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """All parts of it, for the API, the data path and the command line."""

    config: GatewayConfig
    clock: Clock
    database: Database
    secrets: SealedSecrets
    authorities: Authorities
    signing_keys: SigningKeys
    trust: TrustSource
    registry: Registry
    lookup: TunnelLookup
    enrolment: Enrolment
    users: Users
    jwks: JwksKeys | None
    name_claim: NameClaim
    preferences: PreferenceStore
    audit: Audit
    limits: UserLimits
    usage: UsageLog
    services: ServiceCertificates
    own_identity: OwnIdentity
    private_ca: PrivateCa | None

    async def keep_up(self, stop: asyncio.Event) -> None:
        """Rotate, publish and tidy on time until stopped; a failure is tried again.

        To tidy may take long in a large database; that what others changed is published waits
        for none of it. Both are told to stop instead of cancelled, so that no transaction is torn
        in the middle.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_repeated(self._look(), _LOOK_S, stop))
            tasks.create_task(_repeated(lambda: self.tidy(stop.is_set), _TIDY_S, stop))
            tasks.create_task(_repeated(self.name_claim.refresh, REFRESH_S, stop))
            if self.jwks is not None:
                fetch = _repeated(self.jwks.fetch_first, FIRST_KEYS_EVERY_S, stop)
                fetching = tasks.create_task(fetch)
                await stop.wait()
                fetching.cancel()  # it may wait for an address that does not answer

    async def look_once(self) -> None:
        """Find out what only shows when it is tried: each failure is logged where it is found."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.limits.why_not())
            if self.jwks is not None:
                tasks.create_task(self.jwks.fetch_first())

    async def renew(self) -> None:
        """Do what time asks for and cannot wait: keys that are due, denials that are over."""
        self.own_identity.renew_if_due()  # needs no database, which may be away
        await self.database.try_to_write(self.clock())
        await self.signing_keys.keep_up()
        await self.trust.tidy()
        await self.trust.refresh()

    async def tidy(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Do what can wait: delete denials, codes and records that are over, seal for a new key.

        `is_over` is asked now and then, to stop before all is done.
        """
        await self.trust.delete_over(is_over)
        await forget_old_codes(self.database, self.clock(), is_over)
        await forget_old_records(self.database, self.config.records, self.clock(), is_over)
        await self.secrets.follow_key(self.database, is_over)

    def _look(self) -> Callable[[], Awaitable[None]]:
        """What is done each second: hear of others' changes, and renew what is due."""
        renew_at = 0.0

        async def look() -> None:
            nonlocal renew_at
            self.own_identity.renew_if_due()  # first: it needs no database
            # Not a hot question: one row by its key, to learn of other processes' changes.
            if await self.trust.refresh():
                await self.signing_keys.keep_up()
            await self.services.refresh()
            if self.database.availability.write_fault is not None:
                await self.database.try_to_write(self.clock())
            if self.clock() >= renew_at:
                await self.renew()
                renew_at = self.clock() + min(_RENEW_S, self._shortest_period_s())

        return look

    def _shortest_period_s(self) -> float:
        """Short lifetimes (in a test) want a closer look."""
        tokens = self.config.tokens
        return max(_LOOK_S, min(tokens.rotate_after_s, tokens.publish_ahead_s or _RENEW_S) / 4)


async def _repeated(
    work: Callable[[], Awaitable[None]], every_s: float, stop: asyncio.Event
) -> None:
    """Do something again and again until stopped, whether it fails or not."""
    while not stop.is_set():
        try:
            await work()
        except DatabaseUnavailable:
            pass  # the database has said so, and not every second
        except (SQLAlchemyError, ByoaiError) as error:
            log.error(  # noqa: TRY400 -- a database that is away needs no traceback a second
                "upkeep.failed", reason=_reason(error), retry_in_s=every_s
            )
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), every_s)


@asynccontextmanager
async def open_control_plane(
    config: GatewayConfig, clock: Clock = time.time, *, may_create: bool = True
) -> AsyncGenerator[ControlPlane]:
    """Open everything, making on the first start what does not exist yet if that is allowed.

    Raises:
        ConfigError: a setting, a key or a file is wrong or missing.
        DatabaseError: the database cannot be used.
    """
    check(config)
    if may_create:
        _check_state(config)
    private_ca = read_private_ca(config.listen.ca)
    async with AsyncExitStack() as opened:
        database = await Database.open(config.database, may_create=may_create)
        opened.push_async_callback(database.close)
        secrets = await open_secrets(database, config.vault, may_create=may_create)
        control = await _assemble(config, clock, _Kept(database, secrets), private_ca)
        opened.push_async_callback(control.limits.close)
        opened.push_async_callback(control.preferences.close)
        opened.callback(control.name_claim.close)
        await control.services.refresh()
        await control.renew()
        await opened.enter_async_context(control.usage.written())
        yield control


def _check_state(config: GatewayConfig) -> None:
    """Refuse to keep keys and data in a directory that another account owns or can change.

    Raises:
        NotPrivate: it names the directory and what to do.
    """
    keys = [config.vault.key_file] if config.vault.keys is None else []
    state: list[Path] = []
    with suppress(ArgumentError):  # the database has a better sentence for what is no address
        url = make_url(config.database.url)
        if url.get_backend_name() == "sqlite" and url.database:
            state.append(Path(url.database))
    for files, is_only_read in ((keys, True), (state, False)):
        for file in files:
            with suppress(FileNotFoundError):  # what is missing has its own error
                check_directory(file.absolute().parent, is_only_read=is_only_read)


@dataclass(frozen=True, slots=True)
class _Kept:
    """Where everything is kept."""

    database: Database
    secrets: SealedSecrets


async def _assemble(
    config: GatewayConfig, clock: Clock, kept: _Kept, private_ca: PrivateCa | None
) -> ControlPlane:
    database, secrets = kept.database, kept.secrets
    authorities = await open_authorities(database, secrets, clock())
    audit = Audit(clock)
    signing_keys = SigningKeys(database, secrets, audit, config.tokens, clock)
    trust = TrustSource(database, config.tokens, clock)
    authentication_keys = AuthenticationKeys(secrets)
    registry = Registry(database, authentication_keys, audit, config.tunnels, clock)
    lifetime_s = config.services.certificate_lifetime_s
    services = ServiceCertificates(database, authorities.services, lifetime_s, clock)
    issuer = Issuer(authorities.agents, signing_keys, config)
    told = Told(
        tuple(relay.address for relay in config.relays),
        authorities.services.certificate_pem,
        private_ca.pem if private_ca else None,
    )
    limits = AgentLimits(config.limits)
    desk = Desk(database, registry, authentication_keys, issuer, trust, audit, limits)
    user_limits = UserLimits(config.limits)
    assertions = AssertionCheck(database, config.public_url, clock, user_limits.shared)
    jwks_url = config.users.jwks_url
    jwks = JwksKeys(jwks_url, clock) if jwks_url else None
    return ControlPlane(
        config=config,
        clock=clock,
        database=database,
        secrets=secrets,
        authorities=authorities,
        signing_keys=signing_keys,
        trust=trust,
        registry=registry,
        lookup=TunnelLookup(database, authentication_keys, clock),
        enrolment=Enrolment(desk, assertions, told, clock),
        users=Users(config.users, jwks, clock),
        jwks=jwks,
        name_claim=NameClaim(config, database),
        limits=user_limits,
        usage=UsageLog(database),
        preferences=PreferenceStore(
            database, secrets, audit, clock, stale_s=config.database.stale_s
        ),
        audit=audit,
        services=services,
        own_identity=OwnIdentity(
            config.gateway.name,
            authorities.services,
            lifetime_s,
            clock,
            is_revoked=services.denies,
        ),
        private_ca=private_ca,
    )


def _reason(error: Exception) -> str:
    """Our own sentences are fit for a log; a database's may quote a row."""
    return str(error) if isinstance(error, ByoaiError) else type(error).__name__


def read_private_ca(path: Path | None) -> PrivateCa | None:
    """Read the CA that `listen.ca` names; None if there is none.

    Raises:
        ConfigError: the file cannot be read, or is something else.
    """
    if path is None:
        return None
    try:
        (certificate,) = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"listen.ca {path} is not one CA certificate in PEM: {error}") from error
    pem = certificate.public_bytes(Encoding.PEM).decode("ascii")
    return PrivateCa(pem, hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest())
