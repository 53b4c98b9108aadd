"""The gateway's half of a stream, for tests of the agent: TLS and HTTP over a pipe."""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from byoai_shared.http1.client import ClientConnection, Response
from byoai_shared.http1.head import RequestHead
from byoai_shared.http1.incoming import BodySource
from byoai_shared.protocol.errors import ResetCode
from byoai_shared.tls_transport import TlsTransport
from support.wires import PipeTransport

KEY = "the-tunnels-key"
HOST = "abc.tunnel.internal"


class PipeStream(PipeTransport):
    """A pipe that can be reset with a code, as a stream of a link can."""

    reset_code: ResetCode | None = None

    def fail(self, code: ResetCode) -> None:
        """What `StreamTransport.fail` does, as far as it can be seen."""
        self.reset_code = code
        self.abort()


def stream_pipe() -> tuple[PipeTransport, PipeStream]:
    """The gateway's end and the agent's."""
    left, right = PipeTransport(), PipeStream()
    left.peer, right.peer = right, left
    return left, right


@dataclass(slots=True)
class InnerClient:
    """A connected gateway."""

    connection: ClientConnection
    pipe: PipeTransport
    stream: PipeStream

    async def request(
        self,
        method: str,
        target: str,
        body: bytes | BodySource = b"",
        *headers: tuple[bytes, bytes],
        key: str | None = KEY,
    ) -> Response:
        """Ask; the tunnel's key goes along unless another is given."""
        fields = ((b"host", HOST.encode()), *headers)
        if key is not None:
            fields = (*fields, (b"authorization", f"Bearer {key}".encode()))
        return await self.connection.request(RequestHead(method, target, fields), body)

    async def ask(
        self, method: str, target: str, body: bytes = b"", *headers: tuple[bytes, bytes]
    ) -> tuple[int, bytes]:
        """Ask, and read the whole answer."""
        response = await self.request(method, target, body, *headers)
        return response.head.status, await response.read(1 << 24)

    def hang_up(self) -> None:
        """Reset the stream, as a gateway does whose caller has gone."""
        self.pipe.abort()


async def dial(
    accept: Callable[[PipeStream], asyncio.Protocol], context: ssl.SSLContext
) -> InnerClient:
    """Open a stream to `accept` and shake hands over it; raises what that failed with."""
    ours, theirs = stream_pipe()
    connection = ClientConnection()
    tls = TlsTransport(connection, context, server_side=False, server_hostname=HOST)
    theirs.start(accept(theirs))
    ours.start(tls)
    await tls.established()
    return InnerClient(connection, ours, theirs)


async def start_tls(
    transport: asyncio.Transport,
    protocol: asyncio.Protocol,
    context: ssl.SSLContext,
    *,
    server_hostname: str,
    handshake_timeout_s: float = 5.0,
) -> TlsTransport:
    """Speak TLS as a client over a transport that is connected already."""
    tls = TlsTransport(
        protocol,
        context,
        server_side=False,
        server_hostname=server_hostname,
        handshake_timeout_s=handshake_timeout_s,
    )
    transport.set_protocol(tls)
    tls.connection_made(transport)
    await tls.established()
    return tls
