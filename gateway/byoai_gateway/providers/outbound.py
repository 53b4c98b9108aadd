"""Connections to servers on the internet: providers, and users' own model servers.

A name is resolved once per dial, every address it gave is judged, and the connection goes to
one of those: there is no second look at the name in which it could mean something else. The
pool never hands a connection that was made unguarded to somebody who is to be guarded.

It follows no redirects (an answer of 3xx is an answer like any other), and it knows no proxies:
`HTTPS_PROXY` and the like would lead around the guard.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from byoai_gateway.providers.address_guard import AddressGuard, AddressRefused
from byoai_gateway.providers.origin import Origin
from byoai_shared.dialing import AddressInfo, addresses_of, connected_socket, open_connection
from byoai_shared.errors import ByoaiError
from byoai_shared.http1.client import ClientConnection
from byoai_shared.http1.errors import BodyTooLarge, ConnectionClosed, HttpError
from byoai_shared.http1.head import Headers, RequestHead
from byoai_shared.http1.pool import Pool

__all__ = [
    "AddressInfo",
    "Fetched",
    "Origin",
    "Outbound",
    "Unreachable",
    "UnreachableReason",
    "system_context",
]

IDLE_TIMEOUT_S: Final = 4.0
"""Shorter than servers keep one: uvicorn, and so vLLM, lets go after 5 s, and a request that
crosses its end on the wire can neither be answered nor safely be sent again."""
_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"})
"""How OpenSSL's versions say that what came back was something else."""

_FileState = tuple[str, int, int, int]

Resolve = Callable[[str, int], Awaitable[Sequence[AddressInfo]]]
"""From a name and a port to addresses, as `loop.getaddrinfo` gives them."""


class UnreachableReason(StrEnum):
    """What stood in the way."""

    NAME_UNKNOWN = "name_unknown"
    ADDRESS_REFUSED = "address_refused"
    CONNECTION_REFUSED = "connection_refused"
    TLS_FAILED = "tls_failed"
    TIMED_OUT = "timed_out"
    BROKEN_OFF = "broken_off"
    """Connected, but no whole answer came; only `fetch` says so."""


class Unreachable(ByoaiError):
    """There is no way to a server now; the sentence names the host and why."""

    def __init__(self, reason: UnreachableReason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Fetched(NamedTuple):
    """A small answer."""

    status: int
    headers: Headers
    body: bytes


class _Way(NamedTuple):
    """What connections are pooled by; a tuple, because each request computes its hash twice."""

    origin: Origin
    guard: AddressGuard | None


def system_context() -> ssl.SSLContext:
    """Return a client's context that trusts what the system trusts; it is shared, so not to change.

    To read some 140 authorities takes 20 ms, so they are read again only when their files changed.
    """
    paths = ssl.get_default_verify_paths()
    return _context_of((_state_of(paths.cafile), _state_of(paths.capath)))


def _state_of(path: str | None) -> _FileState | None:
    """Return what changes with a file or directory, and which one it is; None without it."""
    if path is None:
        return None
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return path, found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=1)
def _context_of(_trusted: tuple[_FileState | None, _FileState | None]) -> ssl.SSLContext:
    """Make the context.

    By hand: `ssl.create_default_context` writes session keys to where `SSLKEYLOGFILE` says.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    context.set_alpn_protocols(["http/1.1"])
    context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


class Outbound:
    """Pooled connections to any server; its owner closes it."""

    def __init__(
        self,
        connect_s: float,
        context: ssl.SSLContext | None = None,
        *,
        resolve: Resolve | None = None,
    ) -> None:
        self._connect_s = connect_s
        self._context = context if context is not None else system_context()
        self._resolve = resolve if resolve is not None else addresses_of
        self._pool: Pool[_Way] = Pool(self._connect, idle_timeout_s=IDLE_TIMEOUT_S)

    def take_fresh(self, origin: Origin, guard: AddressGuard | None) -> ClientConnection | None:
        """Return a connection that was in use a moment ago, if there is one; see `acquire`."""
        return self._pool.take_fresh(_Way(origin, guard))

    async def acquire(self, origin: Origin, guard: AddressGuard | None) -> ClientConnection:
        """Return a connection; give it back with `release`, whatever became of it.

        Raises:
            Unreachable: there is none to be had within the limit; nothing was sent.
        """
        return await self._pool.acquire(_Way(origin, guard))

    def release(
        self, origin: Origin, guard: AddressGuard | None, connection: ClientConnection
    ) -> None:
        """Take a connection back."""
        self._pool.release(_Way(origin, guard), connection)

    def close(self) -> None:
        """Cut every idle connection; idempotent."""
        self._pool.close()

    async def fetch(
        self,
        origin: Origin,
        head: RequestHead,
        body: bytes = b"",
        *,
        guard: AddressGuard | None = None,
        limit_bytes: int,
        timeout_s: float,
    ) -> Fetched:
        """Ask for something small, whatever its status; `Host` is added.

        Raises:
            Unreachable: there was no whole answer within the limits.
        """
        host = (b"host", origin.authority)
        asked = RequestHead(head.method, head.target, (host, *head.headers))
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(_Way(origin, guard), asked, body, limit_bytes)
        except TimeoutError as error:
            sentence = f"{origin.host} gave no whole answer within {timeout_s:g} s"
            raise Unreachable(UnreachableReason.TIMED_OUT, sentence) from error
        except BodyTooLarge as error:
            sentence = f"the answer of {origin.host} exceeds the limit of {limit_bytes} bytes"
            raise Unreachable(UnreachableReason.BROKEN_OFF, sentence) from error
        except HttpError as error:
            sentence = f"{origin.host} gave no whole HTTP answer: {error}"
            raise Unreachable(UnreachableReason.BROKEN_OFF, sentence) from error

    async def _exchange(
        self, way: _Way, head: RequestHead, body: bytes, limit_bytes: int
    ) -> Fetched:
        while True:
            connection = await self._pool.acquire(way)
            is_used = connection.exchanges > 0
            try:
                response = await connection.request(head, body)
                taken = await response.read(limit_bytes)
            except ConnectionClosed:
                # The server may have let go of an idle connection just now.
                if not is_used or head.method != "GET":
                    raise
            else:
                return Fetched(response.head.status, response.head.headers, taken)
            finally:
                self._pool.release(way, connection)

    async def _connect(self, way: _Way) -> ClientConnection:
        host = way.origin.host
        try:
            async with asyncio.timeout(self._connect_s):
                return await self._dial(way)
        except TimeoutError as error:
            sentence = f"no connection to {host} within {self._connect_s:g} s"
            raise Unreachable(UnreachableReason.TIMED_OUT, sentence) from error
        except AddressRefused as error:
            raise Unreachable(UnreachableReason.ADDRESS_REFUSED, str(error)) from error
        except ssl.SSLError as error:  # a ValueError too, at times
            sentence = f"TLS with {host} failed: {_tls_reason(error)}"
            raise Unreachable(UnreachableReason.TLS_FAILED, sentence) from error
        except (socket.gaierror, ValueError) as error:  # no such name, no valid one, no address
            sentence = f"there is no address for the name {host}"
            raise Unreachable(UnreachableReason.NAME_UNKNOWN, sentence) from error
        except (OSError, RuntimeError) as error:  # uvloop raises RuntimeError at times
            sentence = f"no connection to {host}: it is refused, or lost at once"
            raise Unreachable(UnreachableReason.CONNECTION_REFUSED, sentence) from error

    async def _dial(self, way: _Way) -> ClientConnection:
        origin = way.origin
        found = _judged(await self._resolve(origin.host, origin.port), way.guard)
        return await open_connection(
            lambda: ClientConnection(allow_close_delimited=True),
            await connected_socket(found),
            context=self._context if origin.scheme == "https" else None,
            server_hostname=origin.host,
            handshake_timeout_s=self._connect_s,
        )


def _judged(found: Sequence[AddressInfo], guard: AddressGuard | None) -> Sequence[AddressInfo]:
    """Return what may be connected to. Raises AddressRefused when that is nothing."""
    if guard is None:
        return found
    allowed: list[AddressInfo] = []
    refused = ""
    for info in found:
        try:
            guard.check(str(info[4][0]))
        except AddressRefused as error:
            refused = str(error)  # not the error: it holds this frame
        else:
            allowed.append(info)
    if refused and not allowed:
        raise AddressRefused(refused)
    return allowed


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate does not hold ({error.verify_message})"
    reason: str | None = getattr(error, "reason", None)
    return "it speaks no TLS at this port" if reason is None or reason in _NO_TLS else reason
