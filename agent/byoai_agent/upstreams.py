"""Finds the model servers of this host, keeps watching them, and connects to them.

Looking is one `GET /v1/models` per server and round: cheap, local, and never an inference
(SGLang's `/health_generate` is one). When servers were named, only those are asked; else the
known ports are tried and whoever answers like a model server is one.
"""

import asyncio
import math
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from byoai_agent.config import AgentConfig, NamedUpstream
from byoai_agent.models import Catalogue, Target, Upstream, parse_listing, parse_target
from byoai_agent.rewriting import upstream_headers
from byoai_agent.words import in_words
from byoai_shared.errors import ByoaiError
from byoai_shared.http1.client import ClientConnection
from byoai_shared.http1.errors import HttpError
from byoai_shared.http1.head import HttpLimits, RequestHead
from byoai_shared.http1.pool import Pool
from byoai_shared.logs import get_logger

log = get_logger("agent.upstreams")

# uvicorn (vLLM, SGLang) and llama.cpp close an idle connection after 5 s, without warning: a
# request that crosses that close is lost and may not be repeated. So ours are closed earlier.
IDLE_S: Final = 3.0
_LISTING_BYTES: Final = 4 * 1024 * 1024
_FORGET_AFTER: Final = 3
_FRESH_S: Final = 2.0
_LIMITS: Final = HttpLimits()


class UpstreamUnreachable(ByoaiError):
    """No connection to a model server could be made; the argument says why, in plain words."""


class UpstreamPool:
    """Connections to model servers, kept for a short while."""

    def __init__(self, *, connect_s: float) -> None:
        self._connect_s = connect_s
        self._pool: Pool[Target] = Pool(self._connect, max_idle=64, idle_timeout_s=IDLE_S)

    async def acquire(self, target: Target) -> ClientConnection:
        """A usable connection.

        Raises:
            UpstreamUnreachable: there is none to be had.
        """
        return await self._pool.acquire(target)

    def release(self, target: Target, connection: ClientConnection) -> None:
        """Give a connection back, whatever became of it."""
        self._pool.release(target, connection)

    def close(self) -> None:
        """Cut what is idle."""
        self._pool.close()

    async def _connect(self, target: Target) -> ClientConnection:
        loop = asyncio.get_running_loop()
        context = upstream_tls() if target.is_tls else None
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(
                    lambda: ClientConnection(_LIMITS, allow_close_delimited=True),
                    target.hostname,
                    target.port,
                    ssl=context,
                )
        except TimeoutError:
            raise UpstreamUnreachable(f"no connection within {self._connect_s:g} s") from None
        except ssl.SSLError as error:
            raise UpstreamUnreachable(f"TLS failed ({error.reason or error})") from error
        except OSError as error:
            raise UpstreamUnreachable(in_words(error)) from error
        return connection


def upstream_tls() -> ssl.SSLContext:
    """TLS to a model server elsewhere on the user's network: the system's trust, TLS 1.2 too.

    Built by hand: `create_default_context` would write keys to SSLKEYLOGFILE.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_default_certs()
    return context


@dataclass(frozen=True, slots=True)
class Listing:
    """What one look at an address found."""

    models: tuple[dict[str, object], ...] | None = None
    """None unless it answered like a model server."""
    fault: str = ""
    """Why not, for people."""
    wants_key: bool = False
    refused: bool = False
    """Nobody listens there."""


class UpstreamWatch:
    """Keeps a catalogue true: looks at every server now and then, and when told to."""

    def __init__(
        self,
        config: AgentConfig,
        catalogue: Catalogue,
        pool: UpstreamPool,
        *,
        named: tuple[NamedUpstream, ...],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._discovery = config.discovery
        self._catalogue = catalogue
        self._pool = pool
        self._on_change = on_change
        self._is_named = bool(named)
        self._looking = asyncio.Lock()
        self._looked_at = -math.inf
        self._unproven: list[Upstream] = []
        self.locked: set[int] = set()
        """Ports of unnamed servers that want a key."""
        if named:
            catalogue.upstreams = [Upstream(parse_target(one.url, one.key)) for one in named]

    async def run(self) -> None:
        """Look now and then; until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._discovery.probe_s)

    async def fresh(self) -> None:
        """Look now, unless somebody has just looked."""
        async with self._looking:
            if asyncio.get_running_loop().time() - self._looked_at > _FRESH_S:
                await self._look()

    async def look(self) -> None:
        """Look at every server once."""
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        before = self._picture()
        if not self._is_named:
            self._add_candidates()
        async with asyncio.TaskGroup() as group:
            for upstream in self._candidates:
                group.create_task(self._look_at(upstream))
        if not self._is_named:
            self._settle()
        self._looked_at = asyncio.get_running_loop().time()
        if self._picture() != before:
            self._on_change()

    @property
    def _candidates(self) -> list[Upstream]:
        known = list(self._catalogue.upstreams)
        return known if self._is_named else known + self._unproven

    def _add_candidates(self) -> None:
        known = {one.target.port for one in self._catalogue.upstreams}
        self._unproven = [
            Upstream(parse_target(f"http://{self._discovery.host}:{port}"), is_named=False)
            for port in self._discovery.ports
            if port not in known
        ]

    def _settle(self) -> None:
        """Take in who answered, and let go of who has been silent for a while."""
        kept = [one for one in self._catalogue.upstreams if one.failures < _FORGET_AFTER]
        found = [one for one in self._unproven if one.is_up]
        for one in found:
            log.info("upstream.found", url=one.target.url, models=len(one.models))
        order = {port: index for index, port in enumerate(self._discovery.ports)}
        self._catalogue.upstreams = sorted(
            kept + found, key=lambda one: order.get(one.target.port, len(order))
        )

    async def _look_at(self, upstream: Upstream) -> None:
        listing = await self.list_models(upstream.target)
        was_up = upstream.is_up
        if listing.models is None:
            self._note_failure(upstream, listing)
        else:
            if not upstream.is_up:
                upstream.is_ollama = await self._is_ollama(upstream.target)
            upstream.is_up, upstream.failures, upstream.fault = True, 0, ""
            upstream.models = listing.models
            self.locked.discard(upstream.target.port)
        if was_up is not None and upstream.is_up != was_up:
            event = "upstream.up" if upstream.is_up else "upstream.down"
            log.info(event, url=upstream.target.url, reason=upstream.fault)

    def _note_failure(self, upstream: Upstream, listing: Listing) -> None:
        upstream.failures += 1
        upstream.fault = listing.fault
        # A server busy with a prompt may be slow to list; one that refuses is gone.
        if listing.refused or upstream.is_up is None or upstream.failures >= _FORGET_AFTER:
            upstream.is_up = False
        if listing.wants_key and not upstream.is_named:
            self.locked.add(upstream.target.port)

    async def list_models(self, target: Target) -> Listing:
        """Ask one address for its models."""
        try:
            status, body = await self._get(target, "/v1/models")
        except UpstreamUnreachable as error:
            return Listing(fault=str(error), refused=True)
        except TimeoutError:
            return Listing(fault=f"no answer within {self._discovery.probe_timeout_s:g} s")
        except HttpError as error:
            return Listing(fault=f"no sensible answer ({error})")
        if status in {401, 403}:
            fault = f"it wants an API key (status {status})"
            return Listing(fault=fault, wants_key=True)
        models = parse_listing(body) if status == 200 else None
        if models is None:
            return Listing(fault=f"it does not list models (status {status})")
        return Listing(models=models)

    async def _is_ollama(self, target: Target) -> bool:
        try:
            status, body = await self._get(target, "/api/version")
        except (UpstreamUnreachable, TimeoutError, HttpError):
            return False
        return status == 200 and body.lstrip().startswith(b'{"version"')

    async def _get(self, target: Target, path: str) -> tuple[int, bytes]:
        headers = upstream_headers((), target.authority, target.key)
        async with asyncio.timeout(self._discovery.probe_timeout_s):
            connection = await self._pool.acquire(target)
            try:
                head = RequestHead("GET", target.prefix + path, headers)
                response = await connection.request(head)
                return response.head.status, await response.read(_LISTING_BYTES)
            finally:
                self._pool.release(target, connection)

    def _picture(self) -> tuple[object, ...]:
        return tuple(
            (one.target.url, one.is_up, tuple(entry["id"] for entry in one.models))
            for one in self._catalogue.upstreams
        )
