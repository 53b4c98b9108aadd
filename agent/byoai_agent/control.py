"""Calls the gateway's control plane: enrolment, renewal, tokens.

HTTPS only, except to this very host; through the environment's proxy where there is one. A
refusal comes back as a value that says whether a person is needed. Nothing is retried here:
the callers have schedules.
"""

import asyncio
import socket
import ssl
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

import msgspec

from byoai_agent import __version__
from byoai_agent.proxies import is_loopback, proxy_for
from byoai_agent.words import in_words
from byoai_shared.dialing import addresses_of, connected_socket, open_connection
from byoai_shared.enrolment import (
    FATAL_CODES,
    EnrolRequest,
    EnrolResponse,
    RenewRequest,
    RenewResponse,
    TokenRequest,
    TokenResponse,
    decode_error,
)
from byoai_shared.errors import ByoaiError, ConfigError
from byoai_shared.http1.client import ClientConnection, Response
from byoai_shared.http1.errors import HttpError
from byoai_shared.http1.head import RequestHead
from byoai_shared.proxy import ProxyFailed, connect_through, read_proxy
from byoai_shared.server_urls import ServerUrl, UrlFault, read_server_url
from byoai_shared.tls import client_context

ENROL: Final = "/agent/v1/enrol"
RENEW: Final = "/agent/v1/renew"
TOKEN: Final = "/agent/v1/token"  # noqa: S105 -- a path
CA: Final = "/agent/v1/ca"

_PORTS: Final = {"https": 443, "http": 80}
_MAX_ANSWER_BYTES: Final = 1024 * 1024
_CALL_S: Final = 30.0
_T = TypeVar("_T")


class GatewayError(ByoaiError):
    """A call to the gateway failed."""

    is_fatal = False


class GatewayUnreachable(GatewayError):
    """No answer came; trying again may help."""


class GatewayRefused(GatewayError):
    """The gateway said no."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        server_time: float | None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.status = status
        self.code = code
        self.server_time = server_time
        """The gateway's clock, Unix seconds, from its Date field."""

    @property
    def is_fatal(self) -> bool:  # type: ignore[override] # a refusal decides it by its code
        """Whether trying again is pointless without a person."""
        return self.code in FATAL_CODES


class Gateway:
    """The gateway at one URL."""

    def __init__(self, url: str, *, ca_pem: bytes | None = None) -> None:
        server = _server_of(url)
        self.url = url.rstrip("/")
        self._host = server.host
        self._is_tls = server.scheme == "https"
        self._port = server.port
        self._prefix = server.path
        self._authority = server.authority
        self._ca_pem = ca_pem

    def endpoint(self, path: str) -> str:
        """The whole URL of a call: the audience of its assertion."""
        return self.url + path

    async def enrol(self, request: EnrolRequest) -> EnrolResponse:
        """Spend a join code."""
        return await self._post(ENROL, request, EnrolResponse)

    async def renew(self, request: RenewRequest) -> RenewResponse:
        """Get a certificate for a new link key."""
        return await self._post(RENEW, request, RenewResponse)

    async def token(self, request: TokenRequest) -> TokenResponse:
        """Get a tunnel token."""
        return await self._post(TOKEN, request, TokenResponse)

    async def ca_bundle(self) -> bytes:
        """The gateway's own CA, from a peer that is not verified yet: check its hash."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        head = RequestHead("GET", self._prefix + CA, self._headers())
        _, body = await self._call(head, b"", context)
        return body

    async def greet(self) -> None:
        """Find out whether anything answers there, whatever it says.

        Raises:
            GatewayUnreachable: nothing does.
        """
        head = RequestHead("GET", self._prefix + "/healthz", self._headers())
        try:
            await self._call(head, b"", self._context())
        except GatewayRefused:
            return

    async def _post(self, path: str, request: object, answer: type[_T]) -> _T:
        headers = (*self._headers(), (b"content-type", b"application/json"))
        head = RequestHead("POST", self._prefix + path, headers)
        _, body = await self._call(head, msgspec.json.encode(request), self._context())
        try:
            return msgspec.json.decode(body, type=answer)
        except msgspec.MsgspecError as error:
            raise GatewayUnreachable(
                f"{self.url} did not respond like a BYOAI gateway; if this network has a sign-in "
                "page, open a browser and sign in first; else check the address, and whether "
                "this agent is up to date"
            ) from error

    def _headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return (
            (b"host", self._authority.encode("ascii")),
            (b"user-agent", f"byoai-agent/{__version__}".encode()),
            (b"accept", b"application/json"),
            (b"connection", b"close"),
        )

    def _context(self) -> ssl.SSLContext:
        return client_context(server_ca_pem=self._ca_pem)

    async def _call(
        self, head: RequestHead, body: bytes, context: ssl.SSLContext
    ) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(_CALL_S):
                connection = await self._connect(context if self._is_tls else None)
                try:
                    response = await connection.request(head, body)
                    content = await response.read(_MAX_ANSWER_BYTES)
                finally:
                    connection.abort()
        except (OSError, UnicodeError, ProxyFailed, HttpError) as error:
            raise GatewayUnreachable(self._plainly(error)) from error
        if response.head.status >= 300:
            raise _refusal(response, content)
        return response.head.status, content

    async def _connect(self, context: ssl.SSLContext | None) -> ClientConnection:
        return await open_connection(
            _client,
            await self._connected(),
            context=context,
            server_hostname=self._host,
            handshake_timeout_s=_CALL_S,
        )

    async def _connected(self) -> socket.socket:
        proxy = proxy_for(self.url)
        if proxy is not None:
            return await connect_through(read_proxy(proxy), self._host, self._port)
        return await connected_socket(await addresses_of(self._host, self._port))

    def _plainly(self, error: Exception) -> str:
        """Why the gateway was not reached, and what to do."""
        where = f"the gateway at {self.url}"
        match error:
            case TimeoutError():
                return f"{where} did not answer within {_CALL_S:g} s"
            case ProxyFailed():
                return f"{where} cannot be reached: {error}"
            case ssl.SSLCertVerificationError():
                return f"{where} is not trusted: {certificate_advice(error)}"
            case ssl.SSLError():
                return (
                    f"{where} does not use TLS 1.3 ({error.reason or 'handshake failed'}); check "
                    "its port, and whether something on the way answered in its place"
                )
            case HttpError():
                return f"{where} did not answer properly: {error}"
            case OSError():
                return f"{where} cannot be reached: {in_words(error)}"
            case _:
                return f"{where} cannot be reached: {error}"


def _server_of(url: str) -> ServerUrl:
    try:
        server = read_server_url(url, _PORTS)
    except UrlFault as fault:
        raise ConfigError(f"the gateway's address {fault}; get a new join code") from fault
    if server.scheme == "http" and not is_loopback(server.host):
        raise ConfigError(f"the gateway's address {server.origin} must begin with https://")
    if server.parts.username is not None or server.parts.query or server.parts.fragment:
        raise ConfigError("the gateway's address has more than a host, a port and a path")
    return server


def _client() -> ClientConnection:
    return ClientConnection(allow_close_delimited=True)


def certificate_advice(error: ssl.SSLCertVerificationError) -> str:
    """What a failed certificate check means to a person, and what to do."""
    match error.verify_code:
        case 9 | 10:
            return f"{error.verify_message}; if this host's clock is right, tell the operator"
        case 62 | 64:
            return f"{error.verify_message}; the address is wrong or somebody is in between"
        case _:
            return (
                f"{error.verify_message}; if a proxy inspects TLS here, "
                "its certificate must be in the system's store"
            )


def _refusal(response: Response, content: bytes) -> GatewayRefused:
    status = response.head.status
    fault = decode_error(content)
    if fault is None:
        message = _foreign_answer(response)
        return GatewayRefused(status, "", message, _server_time(response), _retry_after_s(response))
    return GatewayRefused(
        status, fault.code, fault.message, _server_time(response), _retry_after_s(response)
    )


def _retry_after_s(response: Response) -> float | None:
    after = response.head.header(b"retry-after")
    return float(after) if after is not None and after.isdigit() else None


def _foreign_answer(response: Response) -> str:
    """What an answer means that no gateway gives."""
    status = response.head.status
    if status < 400:
        return (
            f"something on the way to the gateway answered with a redirect (status {status}); "
            "if this network has a sign-in page, open a browser and sign in first"
        )
    is_page = b"html" in (response.head.header(b"content-type") or b"").lower()
    if is_page:
        return (
            f"a web page came in place of the gateway's answer (status {status}); something on "
            "the way answered, or the gateway is behind a proxy that cannot reach it: try again "
            "later, or tell its operator"
        )
    return f"the gateway answered with status {status}; try again later, or tell its operator"


def _server_time(response: Response) -> float | None:
    date = response.head.header(b"date")
    try:
        return parsedate_to_datetime(date.decode("ascii")).timestamp() if date else None
    except ValueError:
        return None
