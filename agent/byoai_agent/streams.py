"""The agent's end of the streams of a link: TLS 1.3 with a gateway, and HTTP inside it.

The services CA signs gateways and relays; only a gateway may come in here. Nothing is ever
served without TLS, and a session that fails takes its stream with it.
"""

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from byoai_agent.refusals import render
from byoai_shared.errors import ByoaiError
from byoai_shared.http1.head import HttpLimits
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.server import ServerConnection
from byoai_shared.identity import GatewayIdentity, certificate_identity
from byoai_shared.link.errors import LinkError
from byoai_shared.logs import get_logger
from byoai_shared.protocol.errors import ResetCode
from byoai_shared.secret import Secret
from byoai_shared.tls_transport import TlsTransport

log = get_logger("agent.streams")

Answer = Callable[[ServerRequest, "Doors"], Coroutine[Any, Any, None]]
"""Answers one request that came in past these doors."""


@dataclass(slots=True)
class Doors:
    """What a peer must get past; replaced in place when keys and certificates rotate."""

    context: ssl.SSLContext
    keys: tuple[Secret, ...]

    def admits(self, authorization: bytes | None) -> bool:
        """Whether the field holds one of the keys; every key is compared, in constant time."""
        if authorization is None or not authorization.startswith(b"Bearer "):
            return False
        candidate = authorization[7:].decode("utf-8", "replace")
        matches = [key.matches(candidate) for key in self.keys]
        return any(matches)


class Stream(Protocol):
    """What is needed of a stream besides its being a transport."""

    def fail(self, code: ResetCode) -> None:
        """Reset it."""


class LinkStreams:
    """The streams of one link, so that the link can be drained by itself."""

    def __init__(self, answer: Answer, doors: Doors, limits: HttpLimits) -> None:
        self._answer = answer
        self._limits = limits
        self._doors = doors
        self._open: dict[ServerConnection, Stream] = {}

    def accept(self, stream: Stream) -> asyncio.Protocol:
        """Make the protocol of a stream that a gateway opened; returns at once."""
        server = ServerConnection(
            self._handle,
            self._limits,
            render_refusal=render,
            on_lost=self._forget,
        )
        session = TlsTransport(
            server,
            self._doors.context,
            server_side=True,
            on_handshake=lambda error: self._greet(server, stream, session, error),
        )
        return session

    def drain(self) -> None:
        """Finish what runs and take nothing new.

        An idle stream is reset with NOT_PROCESSED instead of closed: a request that crosses
        the reset may then be sent again, whatever its method.
        """
        for server, stream in list(self._open.items()):
            if server.is_idle:
                stream.fail(ResetCode.NOT_PROCESSED)
            else:
                server.drain()

    async def _handle(self, request: ServerRequest) -> None:
        await self._answer(request, self._doors)

    def _greet(
        self,
        server: ServerConnection,
        stream: Stream,
        session: asyncio.Transport,
        error: BaseException | None,
    ) -> None:
        if error is None:
            error = _not_a_gateway(session.get_extra_info("peercert_der"))
            if error is None:
                self._open[server] = stream
                return
            stream.fail(ResetCode.REFUSED)
        # A client that left before the handshake was done is nobody's fault, and frequent.
        write = log.debug if isinstance(error, LinkError) else log.info
        write("stream.refused", reason=str(error))

    def _forget(self, server: ServerConnection) -> None:
        self._open.pop(server, None)


def _not_a_gateway(certificate: bytes | None) -> ByoaiError | None:
    """Why the peer is no gateway: the services CA signs relays as well."""
    if certificate is None:
        return ByoaiError("the peer of a stream showed no certificate")
    try:
        identity = certificate_identity(certificate)
    except ByoaiError as error:
        return error
    if isinstance(identity, GatewayIdentity):
        return None
    return ByoaiError(f"the peer of a stream is {identity}, not a gateway")
