"""The gateway's settings, section by section; every field has its meaning, default and unit.

Read from `gateway.toml` (`--config FILE`), from `BYOAI_GATEWAY_…` in the environment and from
flags; see `byoai_shared.config` for the order. Lifetimes may be as short as seconds, so that a
test can watch a rotation; what is unsafe or contradictory is refused by `config_check`.
"""

from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta

from byoai_gateway.config_section import Section
from byoai_gateway.provider_config import (
    DefaultProviderSection,
    OpenRouterSection,
    RecordsSection,
    RouterSection,
    SelfHostedSection,
)
from byoai_shared.certificate_life import MAX_SERVICE_LIFETIME_S
from byoai_shared.log_settings import LogSettings
from byoai_shared.secret import Secret

PREFIX: Final = "BYOAI_GATEWAY_"


class GatewaySection(Section, frozen=True):
    """Who this gateway is."""

    name: Annotated[
        str,
        Meta(
            description="this gateway's name among the gateways of one database",
            # A `$` alone also matches before a line break at the end.
            pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$(?!\n)",
        ),
    ] = "gateway"


class ListenSection(Section, frozen=True):
    """Where the backend, browsers and agents reach it."""

    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[
        int, Meta(description="port to listen on; 0 lets the kernel choose", ge=0, le=65535)
    ] = 8080
    certificate: Annotated[
        Path | None,
        Meta(description="PEM certificate chain for HTTPS; leave out behind a TLS proxy"),
    ] = None
    key: Annotated[Path | None, Meta(description="PEM private key of that certificate")] = None
    ca: Annotated[
        Path | None,
        Meta(
            description="PEM certificate of the private CA that signed it; its hash goes into "
            "join codes"
        ),
    ] = None
    drain_s: Annotated[
        float,
        Meta(
            description="time running answers get to finish when the gateway stops",
            ge=0,
            extra={"unit": "s"},
        ),
    ] = 10.0
    handshake_timeout_s: Annotated[
        float, Meta(description="longest TLS handshake", gt=0, le=60, extra={"unit": "s"})
    ] = 5.0
    head_timeout_s: Annotated[
        float,
        Meta(
            description="longest wait for a request's head, from its first byte or the connection",
            gt=0,
            le=300,
            extra={"unit": "s"},
        ),
    ] = 10.0
    body_timeout_s: Annotated[
        float,
        Meta(
            description="longest wait for each 1024 bytes of a request's body",
            gt=0,
            le=600,
            extra={"unit": "s"},
        ),
    ] = 60.0
    keep_alive_s: Annotated[
        float,
        Meta(
            description="how long a connection may wait for its next request",
            gt=0,
            le=3600,
            extra={"unit": "s"},
        ),
    ] = 75.0


class OpsSection(Section, frozen=True):
    """Where operators look: `/healthz`, `/readyz`, `/metrics`, over plain HTTP, asking nobody."""

    host: Annotated[str, Meta(description="address to listen on; never one that users reach")] = (
        "127.0.0.1"
    )
    port: Annotated[
        int, Meta(description="port to listen on; 0 lets the kernel choose", ge=0, le=65535)
    ] = 7481
    names: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=253)], ...],
        Meta(
            description="host names that requests may name, besides localhost, ops.host and IP "
            "addresses; any other is refused with 421"
        ),
    ] = ()


class PublicSection(Section, frozen=True):
    """How others know it."""

    url: Annotated[
        str, Meta(description="address that agents use; it is written into join codes")
    ] = "http://127.0.0.1:8080"


class RelaySection(Section, frozen=True):
    """One relay."""

    address: Annotated[str, Meta(description="where agents reach it, wss://host:port")]
    gateway_address: Annotated[str, Meta(description="where gateways reach it, wss://host:port")]


class DatabaseSection(Section, frozen=True):
    """Where what must last is kept."""

    url: Annotated[str, Meta(description="SQLAlchemy address of the database (async driver)")] = (
        "sqlite+aiosqlite:///gateway.db"
    )
    password: Annotated[
        Secret | None, Meta(description="password at the database, kept out of its address")
    ] = None
    busy_timeout_s: Annotated[
        float,
        Meta(
            description="longest wait for another writer",
            gt=0,
            extra={"unit": "s"},
        ),
    ] = 5.0
    answer_timeout_s: Annotated[
        float,
        Meta(
            description="longest wait for a connection or an answer",
            gt=0,
            extra={"unit": "s"},
        ),
    ] = 5.0
    stale_s: Annotated[
        float,
        Meta(
            description="how old users' settings may be that are used while the database does not "
            "answer; 0: none",
            ge=0,
            le=86_400,
            extra={"unit": "s"},
        ),
    ] = 600.0
    revocations_stale_s: Annotated[
        float,
        Meta(
            description="how old the knowledge of tunnels may be that are used while the database "
            "does not answer: a revocation made elsewhere meanwhile is not known; never longer "
            "than stale_s",
            ge=0,
            le=86_400,
            extra={"unit": "s"},
        ),
    ] = 300.0
    connections: Annotated[
        int, Meta(description="most connections of one gateway (PostgreSQL only)", ge=2)
    ] = 10

    @property
    def tunnels_stale_s(self) -> float:
        """How old the knowledge of tunnels may be while the database does not answer."""
        return min(self.revocations_stale_s, self.stale_s)


class VaultSection(Section, frozen=True):
    """The key-encryption keys: one `ID=BASE64URL` a line, the first one seals, all open."""

    key_file: Annotated[
        Path, Meta(description="file with the keys; made at the first start if absent")
    ] = Path("vault.key")
    keys: Annotated[
        Secret | None, Meta(description="the keys themselves; when given, no file is read")
    ] = None


class UsersSection(Section, frozen=True):
    """How the main application's tokens (JWT) are checked."""

    secret: Annotated[
        Secret | None,
        Meta(description="shared HS256 secret, at least 32 bytes; or else a JWKS address"),
    ] = None
    jwks_url: Annotated[
        str | None, Meta(description="address of the main application's JWKS, https")
    ] = None
    issuer: Annotated[str | None, Meta(description="required `iss`, if any")] = None
    audience: Annotated[str | None, Meta(description="required `aud`, if any")] = None
    user_claim: Annotated[str, Meta(description="claim that holds the user's id")] = "sub"
    plan_claim: Annotated[str, Meta(description="claim that holds the user's plan")] = "plan"
    leeway_s: Annotated[
        float,
        Meta(description="tolerated difference of the clocks", ge=0, extra={"unit": "s"}),
    ] = 30.0


class TunnelsSection(Section, frozen=True):
    """Lifetimes and numbers."""

    join_code_lifetime_s: Annotated[
        float, Meta(description="a join code's life", gt=0, extra={"unit": "s"})
    ] = 900.0
    certificate_lifetime_s: Annotated[
        float, Meta(description="a link certificate's life", ge=2, extra={"unit": "s"})
    ] = 86_400.0
    token_lifetime_s: Annotated[
        float,
        Meta(description="a tunnel token's life", ge=2, le=3600, extra={"unit": "s"}),
    ] = 900.0
    max_per_user: Annotated[int, Meta(description="tunnels a user may have", ge=1)] = 10
    max_agents: Annotated[int, Meta(description="agents a tunnel may have", ge=1)] = 16
    max_revoked_per_user: Annotated[
        int,
        Meta(
            description="removed tunnels and agents of a user whose tokens may not have expired; "
            "beyond it the user can add none until some have",
            ge=1,
        ),
    ] = 64


class ServicesSection(Section, frozen=True):
    """Certificates of relays and gateways, which prove who they are to each other."""

    certificate_lifetime_s: Annotated[
        float,
        Meta(
            description="life of a relay's or gateway's certificate, which renews itself when half "
            "of it is over; a relay that is down for longer needs a new one by hand",
            ge=2,
            le=MAX_SERVICE_LIFETIME_S,
            extra={"unit": "s"},
        ),
    ] = MAX_SERVICE_LIFETIME_S


class TokensSection(Section, frozen=True):
    """What stands in tunnel tokens, and the keys that sign them."""

    issuer: Annotated[
        str, Meta(description="`iss` of tunnel tokens", min_length=1, max_length=255)
    ] = "byoai-gateway"
    audience: Annotated[
        str, Meta(description="`aud` of tunnel tokens", min_length=1, max_length=255)
    ] = "byoai-relay"
    rotate_after_s: Annotated[
        float,
        Meta(description="how long a signing key is used", gt=0, extra={"unit": "s"}),
    ] = 30 * 86_400.0
    publish_ahead_s: Annotated[
        float,
        Meta(
            description="how long relays know a signing key before it is used",
            ge=0,
            extra={"unit": "s"},
        ),
    ] = 86_400.0


class LimitsSection(Section, frozen=True):
    """Against abuse."""

    join_tries_per_minute: Annotated[
        int, Meta(description="join codes one address may try in a minute", ge=1)
    ] = 5
    max_body_bytes: Annotated[
        int,
        Meta(description="largest body of a /v1 request", ge=1, extra={"unit": "bytes"}),
    ] = 100 * 1024 * 1024
    store: Annotated[
        Secret | None,
        Meta(
            description="Redis or Valkey that counts for all gateways together, and remembers used "
            "assertions of agents, redis://user:password@host:port/0; none: each gateway does so "
            "by itself, in memory"
        ),
    ] = None
    when_store_is_down: Annotated[
        Literal["open", "closed"],
        Meta(
            description="what happens while the store does not answer; open: each gateway counts "
            "by itself with the same limits; closed: users' requests are refused with "
            "503; agents' tokens and renewals go on either way"
        ),
    ] = "open"
    requests_per_minute: Annotated[
        int, Meta(description="requests a user may make in a minute, to /v1 and for models", ge=1)
    ] = 600
    concurrent_requests: Annotated[
        int, Meta(description="such requests of a user under way at each gateway", ge=1)
    ] = 64
    connection_tests_per_minute: Annotated[
        int, Meta(description="tests of a connection a user may run in a minute", ge=1)
    ] = 10
    changes_per_minute: Annotated[
        int,
        Meta(description="settings and tunnels a user may change or add in a minute", ge=1),
    ] = 120
    removals_per_minute: Annotated[
        int,
        Meta(description="tunnels and agents a user may remove in a minute, at each gateway", ge=1),
    ] = 120
    agent_tokens_per_minute: Annotated[
        int, Meta(description="tunnel tokens an agent may fetch in a minute, at each gateway", ge=1)
    ] = 30
    agent_renewals_per_minute: Annotated[
        int,
        Meta(description="certificates an agent may renew in a minute, at each gateway", ge=1),
    ] = 10
    user_tokens_per_minute: Annotated[
        int,
        Meta(
            description="tunnel tokens all agents of a user may fetch in a minute, at each gateway",
            ge=1,
        ),
    ] = 1200
    user_renewals_per_minute: Annotated[
        int,
        Meta(
            description="certificates all agents of a user may renew in a minute, at each gateway",
            ge=1,
        ),
    ] = 400
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(
            description="networks of proxies (CIDR): their X-Forwarded-For is believed, and their "
            "connections are limited by proxy_connections instead of address_connections"
        ),
    ] = ()
    connections: Annotated[
        int,
        Meta(
            description="open connections to the public port in all; when there are so many, the "
            "one that has waited longest for a request is closed for a new one",
            ge=64,
            le=1_000_000,
        ),
    ] = 4096
    address_connections: Annotated[
        int,
        Meta(
            description="connections from one address (IPv6: a /64 network; a /48 network may have "
            "four times as many) that wait for a request; one more closes the one that has waited "
            "longest",
            ge=4,
        ),
    ] = 256
    proxy_connections: Annotated[
        int, Meta(description="the same for each address of trusted_proxies", ge=4)
    ] = 2048
    connections_per_second: Annotated[
        float, Meta(description="new connections to the public port", gt=0, extra={"unit": "1/s"})
    ] = 1000.0
    connections_burst: Annotated[
        int, Meta(description="new connections to the public port in a burst", ge=1)
    ] = 4000
    address_connections_per_second: Annotated[
        float,
        Meta(
            description="new connections from one address that is not in trusted_proxies",
            gt=0,
            extra={"unit": "1/s"},
        ),
    ] = 200.0
    address_connections_burst: Annotated[
        int, Meta(description="new connections from such an address in a burst", ge=1)
    ] = 2000


class GatewayConfig(Section, frozen=True):
    """All settings of one gateway."""

    gateway: Annotated[GatewaySection, Meta(description="who this gateway is")] = GatewaySection()
    listen: Annotated[ListenSection, Meta(description="where it is reached")] = ListenSection()
    ops: Annotated[OpsSection, Meta(description="where operators look")] = OpsSection()
    public: Annotated[PublicSection, Meta(description="how others know it")] = PublicSection()
    relays: Annotated[tuple[RelaySection, ...], Meta(description="the relays, in any order")] = ()
    database: Annotated[DatabaseSection, Meta(description="what must last")] = DatabaseSection()
    vault: Annotated[VaultSection, Meta(description="key-encryption keys")] = VaultSection()
    users: Annotated[UsersSection, Meta(description="the users' tokens")] = UsersSection()
    tunnels: Annotated[TunnelsSection, Meta(description="lifetimes, numbers")] = TunnelsSection()
    services: Annotated[ServicesSection, Meta(description="services' certificates")] = (
        ServicesSection()
    )
    tokens: Annotated[TokensSection, Meta(description="tunnel tokens")] = TokensSection()
    limits: Annotated[LimitsSection, Meta(description="against abuse")] = LimitsSection()
    router: Annotated[RouterSection, Meta(description="who is asked when")] = RouterSection()
    default_provider: Annotated[
        DefaultProviderSection, Meta(description="the operator's own AI")
    ] = DefaultProviderSection()
    openrouter: Annotated[OpenRouterSection, Meta(description="OpenRouter")] = OpenRouterSection()
    self_hosted: Annotated[SelfHostedSection, Meta(description="users' own model servers")] = (
        SelfHostedSection()
    )
    records: Annotated[RecordsSection, Meta(description="what is kept")] = RecordsSection()
    log: Annotated[LogSettings, Meta(description="what is written to stderr")] = LogSettings()

    @property
    def public_url(self) -> str:
        """The public address without a trailing slash: paths are appended to it."""
        return self.public.url.rstrip("/")
