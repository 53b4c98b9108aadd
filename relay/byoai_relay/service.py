"""The relay as a process: reads its certificates, opens its listeners, runs until stopped."""

import asyncio
import os
import secrets
import ssl
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from byoai_relay import __version__
from byoai_relay.config import (
    AgentsListener,
    GatewaysListener,
    IdentityFiles,
    OpsListener,
    RelayConfig,
)
from byoai_relay.directory import Directory
from byoai_relay.ops import relay_pages
from byoai_relay.relay import Relay, RelayTimes
from byoai_relay.switch import Switch
from byoai_shared.errors import ConfigError
from byoai_shared.identity import RelayIdentity, certificate_identity
from byoai_shared.link import websocket
from byoai_shared.link.accept import ConnectionRate, GuardedSocket, listen
from byoai_shared.logs import get_logger
from byoai_shared.ops import serve_pages
from byoai_shared.protocol.control import Hello, Role
from byoai_shared.protocol.link_protocol import TICK_S
from byoai_shared.sockets import address_of
from byoai_shared.tls import Credentials, replace_credentials, server_context

CERTIFICATE_CHECK_S: Final = 30.0

log = get_logger("relay")


class RelayService:
    """A relay with its sockets."""

    def __init__(self, config: RelayConfig) -> None:
        files = config.identity
        credentials = read_credentials(files.certificate, files.key)
        self._config = config
        self._contexts = (
            listeners_context(files, credentials, files.agents_ca),
            listeners_context(files, credentials, files.services_ca),
        )
        self._certificate_seen = files.certificate.stat().st_mtime_ns
        limits = config.limits
        hello = Hello(
            role=Role.RELAY,
            node=config.name or relay_name(credentials.certificate_pem),
            instance=secrets.token_hex(8),
            max_streams=limits.streams_per_tunnel,
            software=f"byoai-relay/{__version__}",
        )
        directory = Directory()
        self.relay = Relay(
            hello,
            Switch(limits.for_switch(), directory),
            directory,
            times=RelayTimes(drain_s=config.drain_s, token_grace_s=config.token_grace_s),
            now=time.monotonic,
        )

    async def run(self, stop: asyncio.Event, stop_now: asyncio.Event) -> None:
        """Serve until `stop`, then drain; `stop_now` cuts the drain short."""
        async with self._listening() as (agents, gateways), self._ops() as ops:
            log.info("relay.ready", agents=agents, gateways=gateways, ops=ops)
            async with asyncio.TaskGroup() as tasks:
                ticker = tasks.create_task(self._tick())
                reloader = tasks.create_task(self._watch_certificate())
                await stop.wait()
                log.info("relay.draining", links=self.relay.link_count)
                drain = tasks.create_task(self.relay.drain())
                hurry = tasks.create_task(stop_now.wait())
                await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
                for task in (ticker, reloader, drain, hurry):
                    task.cancel()
        log.info("relay.stopped")

    @asynccontextmanager
    async def _listening(self) -> AsyncGenerator[tuple[str, str]]:
        config = self._config
        agents = self._listen("agents", config.agents)
        try:
            gateways = self._listen("gateways", config.gateways)
        except ConfigError:
            agents.close()
            raise
        agents_context, gateways_context = self._contexts
        servers = [
            await websocket.serve(agents, self.relay.attach_agent, ssl_context=agents_context),
            await websocket.serve(
                gateways, self.relay.attach_gateway, ssl_context=gateways_context
            ),
        ]
        try:
            yield address_of(agents), address_of(gateways)
        finally:
            for server in servers:
                server.close()
            for relay_link in self.relay.links():
                relay_link.link.abort()

    def _listen(self, section: str, where: AgentsListener | GatewaysListener) -> GuardedSocket:
        # A rate for each listener: a flood of connections to the agents' listener, which is
        # open to the internet, must not keep the gateways out.
        limits = self._config.limits
        rate = ConnectionRate(
            per_s=limits.connections_per_s,
            burst=limits.connections_burst,
            per_address_per_s=limits.address_connections_per_s,
            per_address_burst=limits.address_connections_burst,
        )
        try:
            return listen(where.host, where.port, rate)
        except OSError as error:
            raise unusable(section, where, error) from error

    @asynccontextmanager
    async def _ops(self) -> AsyncGenerator[str]:
        where = self._config.ops
        async with AsyncExitStack() as stack:
            pages = serve_pages(where.host, where.port, relay_pages(self.relay))
            try:
                address = await stack.enter_async_context(pages)
            except OSError as error:
                raise unusable("ops", where, error) from error
            yield address

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.relay.tick()

    async def _watch_certificate(self) -> None:
        """Take a renewed certificate into use for new links, without a restart."""
        files = self._config.identity
        while True:
            await asyncio.sleep(CERTIFICATE_CHECK_S)
            try:
                changed = files.certificate.stat().st_mtime_ns
                if changed == self._certificate_seen:
                    continue
                credentials = read_credentials(files.certificate, files.key)
                for context in self._contexts:
                    replace_credentials(context, credentials)
            except (OSError, ssl.SSLError, ConfigError) as error:
                log.warning("certificate.reload_failed", reason=str(error), next="kept the old one")
            else:
                self._certificate_seen = changed
                log.info("certificate.reloaded")


def read_file(path: Path) -> bytes:
    """Read a PEM file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"reading {path} failed: {error.strerror}; set it in [identity], or make the "
            "files with `byoai-gateway issue-relay-certificate`"
        ) from error


def read_credentials(certificate: Path, key: Path) -> Credentials:
    """Read the relay's certificate and key.

    Raises:
        ConfigError: one of them cannot be read.
    """
    return Credentials(certificate_pem=read_file(certificate), key_pem=read_file(key))


def listeners_context(
    files: IdentityFiles, credentials: Credentials, client_ca: Path
) -> ssl.SSLContext:
    """Make the context of a listener that takes clients of one CA.

    Raises:
        ConfigError: the files are not what they should be; it names them.
    """
    client_ca_pem = read_file(client_ca)
    try:
        return server_context(credentials, client_ca_pem=client_ca_pem)
    except ConfigError as error:
        raise ConfigError(
            f"{error} (read from {files.certificate}, {files.key} and {client_ca}); set the right "
            "ones in [identity], or make new ones with `byoai-gateway issue-relay-certificate`"
        ) from error


def unusable(
    section: str, where: AgentsListener | GatewaysListener | OpsListener, error: OSError
) -> ConfigError:
    """Say which listener could not be opened, and what can be done."""
    # asyncio puts its own words before the system's; a name's error has none of those.
    is_systems = error.errno is not None and error.errno > 0
    reason = os.strerror(error.errno or 0) if is_systems else error.strerror
    return ConfigError(
        f"cannot listen on {where.host or 'all addresses'} port {where.port}: {reason}; "
        f"choose another host or port in [{section}], or end what listens there"
    )


def relay_name(certificate_pem: bytes) -> str:
    """Take the relay's name from its own certificate.

    Raises:
        ConfigError: the certificate is not a relay's.
    """
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    from_certificate = certificate_identity(certificate.public_bytes(Encoding.DER))
    if not isinstance(from_certificate, RelayIdentity):
        raise ConfigError(f"the certificate names {from_certificate}, not a relay")
    return from_certificate.name
