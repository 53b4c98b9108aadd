"""Requests to a user's model server: HTTP/1.1 over TLS over a stream over a relay's link.

Connections are pooled by tunnel, and by agent where one is named. Each is a TLS 1.3 session that
trusts the tunnel's pinned certificates and nothing else, so neither a relay nor whoever holds a CA
key can answer in the agent's place. If that session fails the request fails; there is no other
way through.
"""

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol
from weakref import WeakKeyDictionary, WeakSet

from byoai_gateway.absence import Absence
from byoai_gateway.relay_links import RelayLinks
from byoai_shared.errors import ByoaiError
from byoai_shared.http1.client import ClientConnection
from byoai_shared.http1.pool import Pool
from byoai_shared.identity import tunnel_hostname
from byoai_shared.link.errors import LinkLost, StreamReset
from byoai_shared.link.session import LinkSession
from byoai_shared.protocol.errors import ResetCode
from byoai_shared.tls import Credentials, pinned_client_context
from byoai_shared.tls_transport import TlsError, TlsTransport

IDLE_TIMEOUT_S = 20.0
"""An idle connection holds one of the tunnel's streams, which another gateway may want."""
MAX_CONTEXTS = 10_000


class TunnelError(ByoaiError):
    """A tunnel cannot take a request."""

    outcome: ClassVar[str]
    """What became of the dial, for the metrics."""


class TunnelOffline(TunnelError):
    """No agent of the tunnel can be reached; `absence` says why."""

    outcome = "offline"

    def __init__(self, absence: Absence) -> None:
        super().__init__(absence.message)
        self.absence = absence


class TunnelBusy(TunnelError):
    """The tunnel has as many streams as it may have, or the relay is full."""

    outcome = "busy"


class TunnelThrottled(TunnelBusy):
    """The tunnel had too many streams reset before its agent answered; it rests for a while."""

    outcome = "throttled"


class TunnelUntrusted(TunnelError):
    """Whoever answered is not the agent whose certificate is pinned."""

    outcome = "untrusted"


class TunnelLost(TunnelError):
    """The way to the agent broke before the request could be sent."""

    outcome = "lost"


class Pins(Protocol):
    """Which certificates count as a tunnel's agents."""

    async def pins(self, tunnel_id: str) -> tuple[bytes, ...]:
        """The certificates, PEM."""
        ...

    def forget_pins(self, tunnel_id: str) -> None:
        """Look them up again the next time."""
        ...

    async def why_none(self, tunnel_id: str) -> Absence:
        """Why a tunnel has none."""
        ...


class AgentKey(NamedTuple):
    """Where a connection leads: to an agent of a tunnel, or to any where none is named."""

    tunnel_id: str
    agent_id: str = ""


@dataclass(frozen=True, slots=True)
class PinnedContext:
    """The TLS context of a tunnel, and what it was made of."""

    pins: tuple[bytes, ...]
    credentials: Credentials
    context: ssl.SSLContext


class TunnelClient:
    """Pooled connections to the agents of all tunnels.

    `connect_s` is how long the making of one may take, by whichever relays.
    """

    def __init__(
        self,
        links: RelayLinks,
        pins: Pins,
        credentials: Callable[[], Credentials],
        *,
        connect_s: float,
        max_idle: int = 64,
    ) -> None:
        self._links = links
        self._pins = pins
        self._credentials = credentials
        self._connect_s = connect_s
        self._contexts: dict[str, PinnedContext] = {}
        self.dials: Counter[str] = Counter()
        """How streams that were dialled ended up: `opened`, or a `TunnelError`'s outcome."""
        self._in_use: Counter[AgentKey] = Counter()
        """Connections to named agents that are made or used at this moment."""
        self._pool: Pool[AgentKey] = Pool(
            self._connect, max_idle=max_idle, idle_timeout_s=IDLE_TIMEOUT_S
        )
        self._links_used: WeakKeyDictionary[ClientConnection, LinkSession] = WeakKeyDictionary()
        self._watched: WeakSet[LinkSession] = WeakSet()

    def take_fresh(self, tunnel_id: str, agent_id: str = "") -> ClientConnection | None:
        """Return a connection that was in use a moment ago, if there is one; see `acquire`."""
        key = AgentKey(tunnel_id, agent_id)
        connection = self._pool.take_fresh(key)
        if agent_id and connection is not None:
            self._in_use[key] += 1
        return connection

    async def acquire(self, tunnel_id: str, agent_id: str = "") -> ClientConnection:
        """Return a connection to an agent of the tunnel; give it back with `release`.

        To the agent that is named, or else to one that the relay chooses.

        Raises:
            TunnelError: there is no way to the agent now; nothing was sent.
        """
        key = AgentKey(tunnel_id, agent_id)
        if not agent_id:
            return await self._pool.acquire(key)
        self._in_use[key] += 1
        try:
            return await self._pool.acquire(key)
        except BaseException:
            self._no_longer_in_use(key)
            raise

    def in_use(self, tunnel_id: str, agent_id: str) -> int:
        """Return how many requests this gateway has at an agent that it named."""
        return self._in_use[AgentKey(tunnel_id, agent_id)]

    async def absence(self, tunnel_id: str) -> Absence:
        """Say why no agent of the tunnel can be reached, where none can."""
        if not await self._pins.pins(tunnel_id):
            return await self._pins.why_none(tunnel_id)
        return self._links.presence.absence(tunnel_id)

    def release(self, tunnel_id: str, connection: ClientConnection, agent_id: str = "") -> None:
        """Take a connection back, whatever became of it."""
        key = AgentKey(tunnel_id, agent_id)
        if agent_id:
            self._no_longer_in_use(key)
        session = self._links_used.get(connection)
        if session is not None and session.goaway.done() and connection.is_reusable:
            connection.close()  # its relay waits for its streams to end
        else:
            self._pool.release(key, connection)

    def _no_longer_in_use(self, key: AgentKey) -> None:
        self._in_use[key] -= 1
        if self._in_use[key] <= 0:
            del self._in_use[key]

    def close(self) -> None:
        """Cut every idle connection."""
        self._pool.close()

    def _note(self, connection: ClientConnection, session: LinkSession) -> None:
        """Remember by which link a connection goes, to leave that when its relay asks."""
        self._links_used[connection] = session
        if session not in self._watched:
            self._watched.add(session)
            session.goaway.add_done_callback(lambda _: self._leave(session))

    def _leave(self, session: LinkSession) -> None:
        self._pool.close_idle(lambda connection: self._links_used.get(connection) is session)

    async def _connect(self, key: AgentKey) -> ClientConnection:
        tunnel_id = key.tunnel_id
        context = await self._context(tunnel_id)
        deadline = asyncio.get_running_loop().time() + self._connect_s
        try:
            return await self._dial(key, context, deadline)
        except TunnelUntrusted:
            # An agent that joined, or renewed its certificate, a moment ago?
            self._pins.forget_pins(tunnel_id)
            renewed = await self._context(tunnel_id)
            if renewed is context:
                raise
            return await self._dial(key, renewed, deadline)

    async def _dial(
        self, key: AgentKey, context: ssl.SSLContext, deadline: float
    ) -> ClientConnection:
        failure: TunnelError = TunnelOffline(self._links.presence.absence(key.tunnel_id))
        sessions = self._links.sessions_for(key.tunnel_id, key.agent_id)
        for tried, session in enumerate(sessions):
            left_s = deadline - asyncio.get_running_loop().time()
            # One that says nothing leaves the others their part; the last one has all of the rest.
            limit_s = left_s / (len(sessions) - tried)
            try:
                connection = await self._open(session, key, context, limit_s)
            except TunnelError as error:
                self.dials[error.outcome] += 1
                if isinstance(error, TunnelUntrusted):
                    raise
                failure = error  # nothing was sent: the next relay may do better
            else:
                self.dials["opened"] += 1
                return connection
        try:
            raise failure
        finally:
            del failure  # it holds this frame, which would hold it

    async def _open(
        self, session: LinkSession, key: AgentKey, context: ssl.SSLContext, limit_s: float
    ) -> ClientConnection:
        client = ClientConnection()
        tunnel_id, agent_id = key
        hostname = tunnel_hostname(tunnel_id)
        tls = TlsTransport(client, context, server_side=False, server_hostname=hostname)
        try:
            async with asyncio.timeout(limit_s):
                await session.open_stream(tunnel_id, tls, agent_id=agent_id, timeout_s=limit_s)
                await tls.established()
        except StreamReset as reset:
            raise self._reset_error(tunnel_id, reset) from reset
        except LinkLost as lost:
            raise TunnelLost(str(lost)) from lost
        except TimeoutError as error:
            raise TunnelLost(f"the agent did not answer within {self._connect_s:g} s") from error
        except TlsError as error:
            raise TunnelUntrusted(f"the agent's end-to-end session failed: {error}") from error
        self._note(client, session)
        return client

    async def _context(self, tunnel_id: str) -> ssl.SSLContext:
        pins = await self._pins.pins(tunnel_id)
        credentials = self._credentials()
        known = self._contexts.get(tunnel_id)
        if known is not None and known.pins == pins and known.credentials is credentials:
            return known.context
        if not pins:
            raise TunnelOffline(await self._pins.why_none(tunnel_id))
        if len(self._contexts) >= MAX_CONTEXTS:
            self._contexts.pop(next(iter(self._contexts)))
        context = pinned_client_context(pins, credentials, alpn=("http/1.1",))
        self._contexts[tunnel_id] = PinnedContext(pins, credentials, context)
        return context

    def _reset_error(self, tunnel_id: str, reset: StreamReset) -> TunnelError:
        match reset.code:
            case ResetCode.TUNNEL_OFFLINE | ResetCode.UNKNOWN_TUNNEL | ResetCode.REVOKED:
                return TunnelOffline(self._links.presence.absence(tunnel_id))
            case ResetCode.LIMIT_EXCEEDED | ResetCode.OVERLOADED | ResetCode.NOT_PROCESSED:
                return TunnelBusy("the tunnel takes no more requests at this moment")
            case ResetCode.THROTTLED:
                return TunnelThrottled("too many requests ended before the agent answered")
            case _:
                return TunnelLost(str(reset))
