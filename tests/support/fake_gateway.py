"""A gateway's control plane to order, for tests of the agent: plain HTTP or TLS on loopback."""

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from email.utils import formatdate
from typing import TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from byoai_shared.api_errors import error_body
from byoai_shared.assertion import verify_assertion
from byoai_shared.enrolment import (
    EnrolRequest,
    EnrolResponse,
    OtherHost,
    RenewRequest,
    RenewResponse,
    TokenRequest,
    TokenResponse,
)
from byoai_shared.errors import ByoaiError
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.server import ServerConnection
from byoai_shared.identity import AgentIdentity, identity_uri, key_fingerprint
from support.authority import Authority

T = TypeVar("T")


class Refusing(Exception):
    """An error answer."""

    def __init__(self, status: int, code: str, message: str = "refused") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class FakeGateway:
    """Enrols, renews and gives tokens; a test bends it by its attributes."""

    def __init__(self) -> None:
        self.agents_ca = Authority("agents")
        self.services_ca = Authority("services")
        self.gateway_ca = Authority("gateway")
        self.url = ""
        self.relays = ["wss://127.0.0.1:1"]
        self.keys = ["authentication-key"]
        self.registered_model: str | None = None
        self.preferred_model: str | None = None
        self.token_life_s = 900
        self.certificate_life = timedelta(days=1)
        self.clock_offset_s = 0.0
        self.refusals: list[Refusing] = []
        """What the next calls are refused with."""
        self.lose_answers = 0
        """How many of the next answers get lost after the gateway has acted."""
        self.forget_date = False
        self.other_host: OtherHost | None = None
        self.calls: list[str] = []
        self.asked: list[TokenRequest] = []
        self.enrolled: list[EnrolRequest] = []
        self.renewed: list[RenewRequest] = []
        self.link_key: ec.EllipticCurvePublicKey | None = None
        self.former_key: ec.EllipticCurvePublicKey | None = None
        self.tokens = 0

    # -- the calls

    def enrol(self, request: EnrolRequest) -> EnrolResponse:
        self.enrolled.append(request)
        csr = x509.load_pem_x509_csr(request.csr_pem.encode())
        end_to_end = x509.load_pem_x509_certificate(request.end_to_end_certificate_pem.encode())
        identity = AgentIdentity(request.tunnel_id, "agent-1")
        self.link_key = p256(csr.public_key())
        return EnrolResponse(
            agent_id="agent-1",
            certificate_pem=self.certificate(identity, self.link_key),
            relays=self.relays,
            services_ca_pem=self.services_ca.pem.decode(),
            owner="alice",
            server_time=int(self.now()),
            authentication_keys=self.keys,
            token=self.token(),
            token_expires_at=int(self.now()) + self.token_life_s,
            certificate_expires_at=int(self.now() + self.certificate_life.total_seconds()),
            key_fingerprint=key_fingerprint(p256(end_to_end.public_key())),
        )

    def renew(self, request: RenewRequest) -> RenewResponse:
        identity = self.verified(request.assertion, "/agent/v1/renew", may_repeat=True)
        self.renewed.append(request)
        asked = p256(x509.load_pem_x509_csr(request.csr_pem.encode()).public_key())
        if asked != self.link_key:
            self.former_key, self.link_key = self.link_key, asked
        return RenewResponse(
            certificate_pem=self.certificate(identity, asked),
            services_ca_pem=self.services_ca.pem.decode(),
            relays=self.relays,
            certificate_expires_at=int(self.now() + self.certificate_life.total_seconds()),
            server_time=int(self.now()),
            token=self.token(),
            token_expires_at=int(self.now()) + self.token_life_s,
        )

    def give_token(self, request: TokenRequest) -> TokenResponse:
        self.verified(request.assertion, "/agent/v1/token", may_repeat=False)
        self.asked.append(request)
        return TokenResponse(
            token=self.token(),
            token_expires_at=int(self.now()) + self.token_life_s,
            authentication_keys=self.keys,
            relays=self.relays,
            server_time=int(self.now()),
            registered_model=self.registered_model,
            preferred_model=self.preferred_model,
            other_host=self.other_host,
        )

    # -- inside

    def now(self) -> float:
        return time.time() + self.clock_offset_s

    def token(self) -> str:
        self.tokens += 1
        return f"token-{self.tokens}"

    def certificate(self, identity: AgentIdentity, key: ec.EllipticCurvePublicKey) -> str:
        ca = self.agents_ca
        name = x509.UniformResourceIdentifier(identity_uri(identity))
        builder = ca._builder(x509.Name([]), key, self.certificate_life)
        builder = builder.add_extension(x509.SubjectAlternativeName([name]), critical=True)
        return builder.sign(ca._key, SHA256()).public_bytes(Encoding.PEM).decode()

    def verified(self, assertion: str, path: str, *, may_repeat: bool) -> AgentIdentity:
        """Only the newest key counts; for a renewal that got lost, the one before it too."""
        keys = [self.link_key, self.former_key if may_repeat else None]
        for key in keys:
            if key is None:
                continue
            try:
                return verify_assertion(
                    assertion, public_key=key, audience=self.url + path, now=self.now()
                ).identity
            except ByoaiError:
                continue
        raise Refusing(401, "assertion_refused", "the assertion does not hold")

    async def handle(self, request: ServerRequest) -> None:
        path = request.head.target
        self.calls.append(path)
        date = () if self.forget_date else ((b"date", formatdate(self.now()).encode()),)
        headers = ((b"content-type", b"application/json"), *date)
        try:
            if self.refusals:
                raise self.refusals.pop(0)
            answer = await self.answer(request, path)
        except Refusing as refusing:
            body = error_body(refusing.status, refusing.code, refusing.message)
            request.respond(refusing.status, headers, body)
            return
        if self.lose_answers:
            self.lose_answers -= 1
            request.disconnect()
        else:
            request.respond(200, headers, answer)

    async def answer(self, request: ServerRequest, path: str) -> bytes:
        if path == "/agent/v1/ca":
            return self.gateway_ca.pem
        if path == "/healthz":
            return b"{}"
        body = await request.read(100_000)
        match path:
            case "/agent/v1/enrol":
                return obey(body, EnrolRequest, self.enrol)
            case "/agent/v1/renew":
                return obey(body, RenewRequest, self.renew)
            case "/agent/v1/token":
                return obey(body, TokenRequest, self.give_token)
            case _:
                raise Refusing(404, "not_found")


def obey(body: bytes, type_: type[T], act: Callable[[T], object]) -> bytes:
    return msgspec.json.encode(act(msgspec.json.decode(body, type=type_)))


def p256(key: object) -> ec.EllipticCurvePublicKey:
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


@asynccontextmanager
async def running(
    gateway: FakeGateway, context: ssl.SSLContext | None = None
) -> AsyncGenerator[FakeGateway]:
    """Serve on a port of the kernel's choice."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: ServerConnection(gateway.handle), "127.0.0.1", 0, ssl=context
    )
    scheme = "http" if context is None else "https"
    gateway.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield gateway
    finally:
        server.close()
        await server.wait_closed()
