"""One WebSocket as the carrier of a link. The only module that knows the WebSocket library.

It coalesces: all frames that a turn of the event loop puts into the outbox leave in one
message (or few), and none leaves while more than `UNSENT_HIGH_BYTES` wait in the transport,
so that the order which the outbox decides still means something on a slow line.

The library sends nothing by itself: an automatic PONG would go past the outbox and its bounds. The
protocol has a PING of its own, so a WebSocket PING or PONG is a violation and closes the link.
"""

import asyncio
import contextlib
import socket
import ssl
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, Protocol, cast

from picows import (
    WSCloseCode,
    WSFrame,
    WSHandshakeError,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
    ws_connect,  # pyright: ignore[reportUnknownVariableType] # its **kwargs are untyped
    ws_create_server,  # pyright: ignore[reportUnknownVariableType] # its **kwargs are untyped
)
from picows.picows import WSCloseHandshake

from byoai_shared.connection_room import ConnectionRoom, Place
from byoai_shared.dialing import addresses_of, connected_socket
from byoai_shared.link.accept import GuardedSocket
from byoai_shared.link.errors import LinkRefused
from byoai_shared.protocol.errors import CloseCode
from byoai_shared.protocol.frames import MAX_MESSAGE_BYTES, SUBPROTOCOL
from byoai_shared.protocol.outbox import Outbox
from byoai_shared.proxy import ProxyFailed, ProxyServer, connect_through, read_proxy
from byoai_shared.server_urls import ServerUrl, UrlFault, read_server_url
from byoai_shared.tls import peer_refused_us

PATH: Final = "/link"
_PORTS: Final = {"wss": 443}
CONNECT_TIMEOUT_S: Final = 15.0
HANDSHAKE_TIMEOUT_S: Final = 5.0
HEAD_TIMEOUT_S: Final = 5.0
"""From the end of a client's TLS handshake to the end of its HTTP head."""
CLOSE_TIMEOUT_S: Final = 1.0
UNSENT_HIGH_BYTES: Final = 256 * 1024
UNSENT_LOW_BYTES: Final = 64 * 1024
MAX_CLOSE_REASON_BYTES: Final = 123

_TCP_NOTSENT_LOWAT: Final = 25
"""Linux' number (include/uapi/linux/tcp.h); `socket` has the name only from Python 3.12."""


class LinkDriver(Protocol):
    """What runs a link on top of the WebSocket. Nothing here may block or raise."""

    @property
    def outbox(self) -> Outbox:
        """Where the frames to send are taken from."""
        ...

    def message_received(self, message: bytes) -> None:
        """One whole binary message came."""

    def flushed(self) -> None:
        """Frames left the outbox."""

    def link_closed(self, code: int | None, reason: str) -> None:
        """The WebSocket is gone; called once, last. `code` is the peer's, if it said one."""


class WebSocketLink(WSListener):
    """A WebSocket that carries one link."""

    def __init__(
        self,
        attach: Callable[["WebSocketLink"], LinkDriver],
        room: ConnectionRoom | None = None,
    ) -> None:
        self._attach = attach
        self._room = room
        self._driver: LinkDriver | None = None
        self._transport: WSTransport | None = None
        self._loop = asyncio.get_running_loop()
        self._is_flush_scheduled = False
        self._is_writable = True
        self._is_closing = False
        self._closer: asyncio.TimerHandle | None = None
        self.peer_certificate = b""
        """The peer's certificate, DER."""
        self.peer_address = ""
        self._place: Place | None = None
        """Where the listener that took the connection counts it, if it does."""

    def establish(self) -> bool:
        """The peer has proved who it is; False if its address has too many links.

        False as well for a link that `is_evicted`. Idempotent.
        """
        return self._place is None or self._place.establish()

    @property
    def is_evicted(self) -> bool:
        """The connection was closed for another one: its end is on the way."""
        return self._place is not None and not self._place.is_open

    @property
    def is_closing(self) -> bool:
        """Nothing sent from now on would arrive."""
        return self._is_closing

    def flush_soon(self) -> None:
        """Send what is in the outbox at the end of this turn of the event loop."""
        if not self._is_flush_scheduled and self._is_writable:
            self._is_flush_scheduled = True
            self._loop.call_soon(self._flush)

    def close(self, code: CloseCode, reason: str) -> None:
        """Send what waits and a CLOSE; the connection is cut when the peer does not answer."""
        if self._is_closing or self._transport is None:
            return
        self._flush()
        self._is_closing = True
        text = reason.encode()[:MAX_CLOSE_REASON_BYTES].decode(errors="ignore")
        self._transport.send_close(code, text.encode())  # type: ignore[arg-type] # private codes
        self._give_up_later(self._transport.underlying_transport)

    def _give_up_later(self, transport: asyncio.Transport, unsent: int | None = None) -> None:
        """Cut the connection when neither a byte leaves nor the peer answers."""
        now_unsent = transport.get_write_buffer_size()
        if unsent is not None and now_unsent >= unsent:
            self.abort()
        else:
            self._closer = self._loop.call_later(
                CLOSE_TIMEOUT_S, self._give_up_later, transport, now_unsent
            )

    def pause_reading(self) -> None:
        """Leave what the peer sends in the kernel; what was read already is still passed on."""
        if self._transport is not None:
            self._transport.underlying_transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on, unless the link is about to be gone."""
        if self._transport is not None and not self._is_closing:
            self._transport.underlying_transport.resume_reading()

    def abort(self) -> None:
        """Cut the connection at once."""
        self._is_closing = True
        if self._transport is not None:
            self._transport.disconnect(graceful=False)

    def _flush(self) -> None:
        self._is_flush_scheduled = False
        driver, transport = self._driver, self._transport
        if driver is None or transport is None or self._is_closing:
            return
        outbox = driver.outbox
        if not outbox:
            return
        while outbox and self._is_writable:
            transport.send(WSMsgType.BINARY, outbox.take())
        driver.flushed()

    # -- the library's callbacks

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Start: learn who the peer is, cap what the transport holds, hand over."""
        self._transport = transport
        if self._is_closing:
            self.abort()
            return
        underlying = transport.underlying_transport
        underlying.set_write_buffer_limits(high=UNSENT_HIGH_BYTES, low=UNSENT_LOW_BYTES)
        underlying_socket = underlying.get_extra_info("socket")
        _limit_unsent(underlying_socket)
        if self._room is not None:
            self._place = self._room.place(underlying_socket.fileno())
        tls = underlying.get_extra_info("ssl_object")
        if tls is not None:
            self.peer_certificate = tls.getpeercert(True) or b""
        peer = underlying.get_extra_info("peername")
        self.peer_address = f"{peer[0]}:{peer[1]}" if peer else "unknown"
        self._driver = self._attach(self)
        self.flush_soon()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Pass whole binary messages on; answer CLOSE; refuse everything else."""
        if self._driver is None or (self._is_closing and frame.msg_type != WSMsgType.CLOSE):
            return
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            self.close(CloseCode.PROTOCOL_ERROR, "no WebSocket extension was agreed upon")
        elif frame.msg_type == WSMsgType.BINARY and frame.fin:
            # The one copy on the receiving side: a frame's memory dies with this call, and
            # what is forwarded lives until the end of the loop's turn.
            self._driver.message_received(frame.get_payload_as_bytes())
        elif frame.msg_type == WSMsgType.CLOSE:
            if not self._is_closing:
                code = frame.get_close_code()
                # NO_INFO is the library's word for none; it must not stand on the wire.
                transport.send_close(WSCloseCode.OK if code == WSCloseCode.NO_INFO else code)
            self._is_closing = True
            transport.disconnect()
        else:
            self.close(CloseCode.PROTOCOL_ERROR, "only whole binary messages are spoken here")

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Tell the driver, once."""
        self._is_closing = True
        if self._closer is not None:
            self._closer.cancel()
        driver, self._driver = self._driver, None
        if driver is not None:
            # None until a CLOSE was sent or received, and an integer, whatever the stub says.
            handshake = cast("WSCloseHandshake | None", transport.close_handshake)
            received = handshake.recv if handshake is not None else None
            code = int(cast("int", received.code)) if received else None
            driver.link_closed(code, received.reason if received else "")

    def pause_writing(self) -> None:
        """The transport's buffer is above its high mark."""
        self._is_writable = False

    def resume_writing(self) -> None:
        """The transport's buffer is below its low mark."""
        self._is_writable = True
        if self._driver is not None:
            self._flush()


def _limit_unsent(sock: socket.socket | None) -> None:
    """Keep the kernel's queue of unsent bytes short where the system can (Linux)."""
    if sock is not None and sys.platform == "linux":
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_HIGH_BYTES)


class _Dialling:
    """A link that is about to stand; the library forgets it when it is given up meanwhile."""

    def __init__(self, attach: Callable[[WebSocketLink], LinkDriver]) -> None:
        self._attach = attach
        self._link: WebSocketLink | None = None
        self._is_given_up = False

    def make(self) -> WebSocketLink:
        self._link = WebSocketLink(self._attach)
        if self._is_given_up:
            self._link.abort()
        return self._link

    def give_up(self) -> None:
        self._is_given_up = True
        if self._link is not None:
            self._link.abort()


async def connect(
    url: str,
    attach: Callable[[WebSocketLink], LinkDriver],
    *,
    ssl_context: ssl.SSLContext,
    proxy: str | None = None,
) -> WebSocketLink:
    """Dial `wss://host:port`; `attach` makes the driver once the WebSocket stands.

    `proxy` is the address of a proxy to go through.

    Raises:
        LinkRefused: in whichever way it did not come about, within `CONNECT_TIMEOUT_S`.
    """
    listener: WSListener | None
    dialling = _Dialling(attach)
    try:
        server = read_server_url(url, _PORTS)
        way = None if proxy is None else read_proxy(proxy)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            transport, listener = await ws_connect(
                dialling.make,
                url.rstrip("/") + PATH,
                ssl_context=ssl_context,
                socket_factory=lambda _: _connected(server, way),
                extra_headers={"Sec-WebSocket-Protocol": SUBPROTOCOL},
                enable_auto_ping=False,
                enable_auto_pong=False,
                websocket_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                max_frame_size=MAX_MESSAGE_BYTES,
                max_redirects=0,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                ssl_shutdown_timeout=CLOSE_TIMEOUT_S,
                logger_name="link",
            )
    except asyncio.CancelledError:
        dialling.give_up()
        raise
    except TimeoutError as error:
        dialling.give_up()
        raise LinkRefused(url, "no answer in time") from error
    except WSHandshakeError as error:
        raise _no_upgrade(url, error.response) from error
    except UrlFault as error:
        raise LinkRefused(url, f"the relay's address {error}") from error
    except ProxyFailed as error:
        raise LinkRefused(url, str(error)) from error
    except (OSError, EOFError, UnicodeError) as error:
        raise _refused(url, error) from error
    if not isinstance(listener, WebSocketLink):
        # TLS 1.3 tells a client late that its certificate was refused: the library then
        # returns without a listener.
        raise _over_certificate(url)
    answered = transport.response.headers.get("Sec-WebSocket-Protocol")
    if answered != SUBPROTOCOL:
        listener.abort()
        raise LinkRefused(url, f"the other side speaks {answered!r}, not {SUBPROTOCOL!r}")
    return listener


async def _connected(server: ServerUrl, proxy: ProxyServer | None) -> socket.socket:
    """Return a socket that leads to the server."""
    if proxy is not None:
        return await connect_through(proxy, server.host, server.port)
    return await connected_socket(await addresses_of(server.host, server.port))


def _no_upgrade(url: str, response: WSUpgradeResponse | None) -> LinkRefused:
    """Say what answered in a relay's place; status 503 is a relay that sheds load."""
    if response is None:
        return LinkRefused(url, "what answered there is not a relay")
    after = response.headers.get("Retry-After", "")
    retry_after_s = float(after) if after.isascii() and after.isdigit() else None
    if response.status == HTTPStatus.SERVICE_UNAVAILABLE:
        reason = "it is overloaded or being restarted (HTTP status 503)"
    else:
        reason = (
            f"what answered there is not a relay (HTTP status {int(response.status)}); a proxy "
            "or sign-in page of this network may have answered in its place"
        )
    return LinkRefused(url, reason, retry_after_s=retry_after_s)


def _refused(url: str, error: OSError | EOFError | UnicodeError) -> LinkRefused:
    if peer_refused_us(error):
        return _over_certificate(url)
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = (
            f"its certificate does not verify: {error.verify_message}; if a proxy inspects TLS "
            "here, exclude this address from inspection"
        )
        return LinkRefused(url, reason)
    if isinstance(error, ssl.SSLError):
        return LinkRefused(url, "what answered there does not use TLS, so it is not a relay")
    return LinkRefused(url, str(error) or type(error).__name__)


def _over_certificate(url: str) -> LinkRefused:
    reason = "the relay closed the connection, most likely over our certificate"
    return LinkRefused(url, reason, is_over_certificate=True)


async def serve(
    listener: GuardedSocket,
    attach: Callable[[WebSocketLink], LinkDriver],
    *,
    ssl_context: ssl.SSLContext,
) -> asyncio.Server:
    """Take links on a listening socket; the caller closes the server it gets."""

    def upgrade(request: WSUpgradeRequest) -> WSUpgradeResponseWithListener:
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        if request.path.decode("latin-1") != PATH:
            return WSUpgradeResponseWithListener(WSUpgradeResponse.create_error_response(404), None)
        if SUBPROTOCOL not in (name.strip() for name in offered.split(",")):
            body = f"this is a BYOAI relay; it speaks {SUBPROTOCOL} only\n".encode()
            refusal = WSUpgradeResponse.create_error_response(400, body)
            return WSUpgradeResponseWithListener(refusal, None)
        headers = {"Sec-WebSocket-Protocol": SUBPROTOCOL}
        answer = WSUpgradeResponse.create_101_response(headers)
        return WSUpgradeResponseWithListener(answer, WebSocketLink(attach, listener.room))

    return await ws_create_server(
        upgrade,
        sock=listener,
        ssl=ssl_context,
        ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
        ssl_shutdown_timeout=CLOSE_TIMEOUT_S,
        enable_auto_ping=False,
        enable_auto_pong=False,
        websocket_handshake_timeout=HEAD_TIMEOUT_S,
        max_frame_size=MAX_MESSAGE_BYTES,
        read_buffer_init_size=4096,
        backlog=1024,
        logger_name="link",
    )
