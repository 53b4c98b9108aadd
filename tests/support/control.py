"""A control plane on a real SQLite file, with a clock of its own, and agents that talk to it."""

import ssl
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from cryptography.hazmat.primitives.asymmetric import ec

from byoai_gateway.api.app import create_app
from byoai_gateway.choosing import Choices
from byoai_gateway.config import (
    DatabaseSection,
    GatewayConfig,
    PublicSection,
    RelaySection,
    TunnelsSection,
    UsersSection,
    VaultSection,
)
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.presence import PresenceMap
from byoai_gateway.readiness import Readiness
from byoai_gateway.registry import Invitation
from byoai_gateway.relay_links import GatewayName, RelayLinks
from byoai_gateway.routes import RegistryRoutes
from byoai_gateway.submissions import spki
from byoai_gateway.tunnel_rows import ModelInfo
from byoai_gateway.users import User, mint
from byoai_gateway.ways import open_ways
from byoai_shared.assertion import sign_assertion
from byoai_shared.enrolment import (
    EnrolRequest,
    EnrolResponse,
    RenewRequest,
    RenewResponse,
    TokenRequest,
    TokenResponse,
)
from byoai_shared.identity import AgentIdentity, key_thumbprint, tunnel_hostname
from byoai_shared.keys import make_csr, new_key, self_signed_certificate
from byoai_shared.secret import Secret
from support.migrations import migrated_sqlite_file

PUBLIC_URL = "https://gateway.example.com"
USERS_SECRET = "a shared secret of thirty-two bytes or more"
_DATABASE = "gateway.db"
MODEL = ModelInfo("smollm2", ("text-generation",))


@dataclass
class FakeClock:
    """Stands still until it is told otherwise; begins at the real time, as keys do."""

    now: float = field(default_factory=lambda: float(int(time.time())))

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def sqlite(directory: Path) -> DatabaseSection:
    """A database in a file, which does not exist yet."""
    return _sqlite(directory / _DATABASE)


def migrated_sqlite(directory: Path) -> DatabaseSection:
    """A database in a file, with empty tables unless the folder holds one already."""
    path = directory / _DATABASE
    if not path.exists():
        path.write_bytes(migrated_sqlite_file())
    return _sqlite(path)


def _sqlite(path: Path) -> DatabaseSection:
    return DatabaseSection(url=f"sqlite+aiosqlite:///{path}")


def gateway_config(directory: Path, **changes: msgspec.Struct) -> GatewayConfig:
    """Settings with everything in a folder; `changes` replace whole sections."""
    database = changes.pop("database", None) or migrated_sqlite(directory)
    config = GatewayConfig(
        public=PublicSection(url=PUBLIC_URL),
        vault=VaultSection(key_file=directory / "vault.key"),
        users=UsersSection(secret=Secret(USERS_SECRET)),
        relays=(RelaySection(address="wss://relay:1", gateway_address="wss://relay:2"),),
        tunnels=TunnelsSection(),
    )
    return msgspec.structs.replace(config, database=database, **changes)


def bearer(user_id: str, clock: FakeClock, *, plan: str = "pro", hours: float = 1) -> str:
    """The Authorization field of a user."""
    settings = UsersSection(secret=Secret(USERS_SECRET))
    return "Bearer " + mint(User(user_id, plan), settings, clock(), hours * 3600)


Client = TestClient[web.Request, web.Application]


@dataclass
class Api:
    """The API over real HTTP on loopback, and what is behind it."""

    control: ControlPlane
    clock: FakeClock
    presence: PresenceMap
    http: Client

    async def call(
        self, method: str, path: str, user: str | None = None, body: Any = None, **headers: str
    ) -> tuple[int, Any]:
        """One call; answers status and decoded body."""
        if user is not None:
            headers["Authorization"] = bearer(user, self.clock)
        async with self.http.request(method, path, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def register(self, user: str) -> dict[str, Any]:
        """A new tunnel of a user."""
        body = {"modelInfo": {"name": "smollm2", "capabilities": ["text-generation"]}}
        status, answer = await self.call("POST", "/api/tunnel/register", user, body)
        assert status == 201, answer
        registered: dict[str, Any] = answer
        return registered


@dataclass
class RelayLinksAsTold:
    """The links to the relays, up or down as a test has them."""

    addresses: Sequence[str] = ()
    connected: Sequence[str] = ()


@asynccontextmanager
async def open_api(
    config: GatewayConfig, clock: FakeClock, *, close_connections: bool = False
) -> AsyncGenerator[Api]:
    """Serve a control plane's API."""
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(open_control_plane(config, clock))
        links = RelayLinks(
            (), GatewayName("gateway", ssl.create_default_context), control.trust, control.services
        )
        routes = RegistryRoutes(control.lookup, links.presence)
        ways = await stack.enter_async_context(open_ways(control, links, routes))
        app = create_app(
            control,
            links.presence,
            Choices(config, control.preferences, ways),
            Readiness(control.database, RelayLinksAsTold()).why_not,
            close_connections=close_connections,
        )
        http = await stack.enter_async_context(TestClient(TestServer(app)))
        yield Api(control, clock, links.presence, http)


class FakeAgent:
    """The enrolment side of an agent: its keys, and the calls it makes with them."""

    def __init__(self, control: ControlPlane, tunnel_id: str) -> None:
        self.control = control
        self.tunnel_id = tunnel_id
        self.key = new_key()
        self.end_to_end_pem = end_to_end_pem(tunnel_id)
        self.agent_id = ""
        self.instance = ""
        self.hostname = "gpu-1"
        self.replaces = ""
        self.replaces_key = ""

    @property
    def identity(self) -> AgentIdentity:
        return AgentIdentity(self.tunnel_id, self.agent_id)

    def enrol_request(self, secret: str) -> EnrolRequest:
        return EnrolRequest(
            tunnel_id=self.tunnel_id,
            secret=secret,
            csr_pem=make_csr(self.key).decode(),
            end_to_end_certificate_pem=self.end_to_end_pem,
            agent_version="0.1.0",
            hostname=self.hostname,
            replaces=self.replaces,
            replaces_key=self.replaces_key,
        )

    def takes_over(self, former: "FakeAgent", key: ec.EllipticCurvePrivateKey) -> None:
        """Join on a host that has the state of `former` with that key."""
        self.replaces, self.replaces_key = former.agent_id, key_thumbprint(spki(key.public_key()))

    async def enrol(self, secret: str) -> EnrolResponse:
        answer = await self.control.enrolment.enrol(self.enrol_request(secret))
        self.agent_id = answer.agent_id
        return answer

    def assertion(self, path: str, key: ec.EllipticCurvePrivateKey | None = None) -> str:
        return sign_assertion(
            identity=self.identity,
            key=key or self.key,
            audience=PUBLIC_URL + path,
            now=self.control.clock(),
        )

    async def token(self, key: ec.EllipticCurvePrivateKey | None = None) -> TokenResponse:
        request = TokenRequest(
            assertion=self.assertion("/agent/v1/token", key),
            instance=self.instance,
            hostname=self.hostname,
        )
        return await self.control.enrolment.token(request)

    async def renew(
        self,
        to: ec.EllipticCurvePrivateKey,
        *,
        by: ec.EllipticCurvePrivateKey | None = None,
        end_to_end: str | None = None,
    ) -> RenewResponse:
        """Renew from `by` (its current key) to the key `to`, without taking it over."""
        request = RenewRequest(
            assertion=self.assertion("/agent/v1/renew", by),
            csr_pem=make_csr(to).decode(),
            end_to_end_certificate_pem=end_to_end,
            instance=self.instance,
            hostname=self.hostname,
        )
        return await self.control.enrolment.renew(request)


def end_to_end_pem(tunnel_id: str) -> str:
    """A new end-to-end certificate."""
    hostname = tunnel_hostname(tunnel_id)
    return self_signed_certificate(new_key(), hostname, timedelta(days=365)).decode()


async def invitation(control: ControlPlane, user: str = "alice") -> Invitation:
    """A new tunnel of a user."""
    return await control.registry.register(user, MODEL)


async def joined_agent(control: ControlPlane, user: str = "alice") -> FakeAgent:
    """An agent that has just joined a new tunnel of a user."""
    invited = await invitation(control, user)
    agent = FakeAgent(control, invited.tunnel_id)
    await agent.enrol(invited.secret.reveal())
    return agent
