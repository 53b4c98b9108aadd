"""Finds the model servers of this host, keeps watching them, and connects to them.

Looking is one `GET /v1/models` per server and round: cheap, local, and never an inference
(SGLang's `/health_generate` is one). When servers were named, only those are asked; else the
known ports are tried and whoever answers like a model server is one.
"""

import asyncio
import math
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

from byoai_agent.config import AgentConfig, NamedUpstream
from byoai_agent.listings import Listing, read_listing
from byoai_agent.models import Catalogue, Target, Upstream, parse_target
from byoai_agent.rewriting import upstream_headers
from byoai_agent.words import in_words, tls_in_words
from byoai_shared.dialing import addresses_of, connected_socket, open_connection
from byoai_shared.errors import ByoaiError, ConfigError
from byoai_shared.http1.client import ClientConnection
from byoai_shared.http1.errors import HttpError
from byoai_shared.http1.head import HttpLimits, RequestHead, ResponseHead
from byoai_shared.http1.pool import Pool
from byoai_shared.logs import get_logger

log = get_logger("agent.upstreams")

# uvicorn (vLLM, SGLang) and llama.cpp close an idle connection after 5 s, without warning: a
# request that crosses that close is lost and may not be repeated. So ours are closed earlier.
IDLE_S: Final = 3.0
_LISTING_BYTES: Final = 4 * 1024 * 1024
_FORGET_AFTER: Final = 3
_FRESH_S: Final = 2.0
WAITING_S: Final = 2.0
"""Time between two looks while a server is loading a model, or busy."""
_LIMITS: Final = HttpLimits()


class UpstreamUnreachable(ByoaiError):
    """No connection to a model server could be made; the argument says why, in plain words."""


class UpstreamPool:
    """Connections to model servers, kept for a short while."""

    def __init__(self, *, connect_s: float) -> None:
        self._connect_s = connect_s
        self._contexts: dict[Path | None, ssl.SSLContext] = {}
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
        try:
            context = self._context(target)
            async with asyncio.timeout(self._connect_s):
                found = await addresses_of(target.hostname, target.port)
                return await open_connection(
                    lambda: ClientConnection(_LIMITS, allow_close_delimited=True),
                    await connected_socket(found),
                    context=context,
                    server_hostname=target.hostname,
                    handshake_timeout_s=self._connect_s,
                )
        except TimeoutError:
            raise UpstreamUnreachable(f"no connection within {self._connect_s:g} s") from None
        except ssl.SSLError as error:
            raise UpstreamUnreachable(tls_in_words(error)) from error
        except (OSError, UnicodeError) as error:
            raise UpstreamUnreachable(in_words(error)) from error

    def _context(self, target: Target) -> ssl.SSLContext | None:
        if not target.is_tls:
            return None
        context = self._contexts.get(target.ca_file)
        if context is None:
            try:
                context = upstream_tls(target.ca_file)
            except ConfigError as error:
                raise UpstreamUnreachable(str(error)) from error
            self._contexts[target.ca_file] = context
        return context


def upstream_tls(ca_file: Path | None = None) -> ssl.SSLContext:
    """TLS to a model server elsewhere on the user's network: the system's trust, TLS 1.2 too.

    Built by hand: `create_default_context` would write keys to SSLKEYLOGFILE.

    Raises:
        ConfigError: `ca_file` cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_default_certs()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=str(ca_file))
        except ssl.SSLError as error:
            raise ConfigError(
                f"the CA file {ca_file} of a model server holds no certificate in PEM; convert "
                "it with: openssl x509 -inform der -outform pem"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"the CA file {ca_file} of a model server cannot be read: {error.strerror}; "
                "correct `ca_file` or `upstream_ca_file`"
            ) from error
    return context


def target_of(named: NamedUpstream) -> Target:
    """Return where a named server is, after its address, key and CA were checked.

    Raises:
        ConfigError: one of them cannot be used.
    """
    target = parse_target(named.url, named.key, named.ca_file)
    if named.ca_file is not None:
        upstream_tls(named.ca_file)
    return target


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
            catalogue.upstreams = [Upstream(target_of(one)) for one in named]

    async def run(self) -> None:
        """Look now and then; until cancelled."""
        while True:
            await self.look()
            # What is loading is asked more often: its models are wanted as soon as it is done.
            is_waiting = self._catalogue.is_waiting
            rest_s = self._discovery.probe_s
            await asyncio.sleep(min(rest_s, WAITING_S) if is_waiting else rest_s)

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
        found = [one for one in self._unproven if one.is_up or one.is_waiting]
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
            upstream.is_waiting = False
            upstream.models = listing.models
            self.locked.discard(upstream.target.port)
        if was_up is not None and upstream.is_up != was_up:
            event = "upstream.up" if upstream.is_up else "upstream.down"
            log.info(event, url=upstream.target.url, reason=upstream.fault)

    def _note_failure(self, upstream: Upstream, listing: Listing) -> None:
        upstream.fault, upstream.is_waiting = listing.fault, listing.is_waiting
        if listing.is_waiting:
            upstream.failures = 0
            # One that was up and is busy still answers requests, if only by saying so.
            upstream.is_up = bool(upstream.is_up)
            return
        upstream.failures += 1
        # A server busy with a prompt may be slow to list; one that refuses is gone.
        if listing.refused or upstream.is_up is None or upstream.failures >= _FORGET_AFTER:
            upstream.is_up = False
        if listing.wants_key and not upstream.is_named:
            self.locked.add(upstream.target.port)

    async def list_models(self, target: Target) -> Listing:
        """Ask one address for its models."""
        try:
            head, body = await self._get(target, "/v1/models")
        except UpstreamUnreachable as error:
            return Listing(fault=str(error), refused=True)
        except TimeoutError:
            return Listing(fault=f"no answer within {self._discovery.probe_timeout_s:g} s")
        except HttpError as error:
            return Listing(fault=_no_http(target, error))
        return read_listing(target, head, body)

    async def _is_ollama(self, target: Target) -> bool:
        try:
            head, body = await self._get(target, "/api/version")
        except (UpstreamUnreachable, TimeoutError, HttpError):
            return False
        return head.status == 200 and body.lstrip().startswith(b'{"version"')

    async def _get(self, target: Target, path: str) -> tuple[ResponseHead, bytes]:
        headers = upstream_headers((), target.authority, target.key)
        async with asyncio.timeout(self._discovery.probe_timeout_s):
            connection = await self._pool.acquire(target)
            try:
                head = RequestHead("GET", target.prefix + path, headers)
                response = await connection.request(head)
                return response.head, await response.read(_LISTING_BYTES)
            finally:
                self._pool.release(target, connection)

    def _picture(self) -> tuple[object, ...]:
        return tuple(
            (one.target.url, one.is_up, one.is_waiting, tuple(entry["id"] for entry in one.models))
            for one in self._catalogue.upstreams
        )


def _no_http(target: Target, error: HttpError) -> str:
    advice = "check the port" if target.is_tls else "check the port; if it uses TLS, write https://"
    return f"it does not answer in HTTP ({error}); {advice}"
