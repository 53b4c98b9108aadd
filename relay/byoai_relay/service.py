"""The relay as a process: reads its certificates, opens its listeners, runs until stopped."""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

from byoai_relay import __version__
from byoai_relay.config import (
    AgentsListener,
    GatewaysListener,
    OpsListener,
    RelayConfig,
)
from byoai_relay.connection_guard import link_guards
from byoai_relay.directory import Directory
from byoai_relay.ops import relay_pages
from byoai_relay.own_certificate import OwnCertificate
from byoai_relay.relay import Relay, RelayTimes
from byoai_relay.switch import Switch
from byoai_shared.errors import ConfigError
from byoai_shared.link import websocket
from byoai_shared.link.accept import GuardedSocket, listen
from byoai_shared.listener import ConnectionGuard
from byoai_shared.logs import get_logger
from byoai_shared.ops import serve_pages
from byoai_shared.protocol.control import Hello, Role, Services
from byoai_shared.protocol.link_protocol import TICK_S
from byoai_shared.revoked_services import StatementRefused, read_statement
from byoai_shared.sockets import address_of

log = get_logger("relay")


class RelayService:
    """A relay with its sockets."""

    def __init__(self, config: RelayConfig) -> None:
        self._config = config
        self.certificate = OwnCertificate(config.identity)
        limits = config.limits
        hello = Hello(
            role=Role.RELAY,
            node=config.name or self.certificate.name,
            instance=secrets.token_hex(8),
            max_streams=limits.streams_per_tunnel,
            software=f"byoai-relay/{__version__}",
            takes_services=True,
        )
        directory = Directory()
        self.relay = Relay(
            hello,
            Switch(limits.for_switch(), directory),
            directory,
            times=RelayTimes(drain_s=config.drain_s, token_grace_s=config.token_grace_s),
            now=time.monotonic,
        )
        self._guards = link_guards(limits)
        self.relay.on_services = self._take_services

    async def run(self, stop: asyncio.Event, stop_now: asyncio.Event) -> None:
        """Serve until `stop`, then drain; `stop_now` cuts the drain short."""
        async with self._listening() as (agents, gateways), self._ops() as ops:
            log.info("relay.ready", agents=agents, gateways=gateways, ops=ops)
            async with asyncio.TaskGroup() as tasks:
                ticker = tasks.create_task(self._tick())
                reloader = tasks.create_task(self.certificate.watch())
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
        agents = _listen("agents", config.agents, self._guards.agents)
        try:
            gateways = _listen("gateways", config.gateways, self._guards.gateways)
        except ConfigError:
            agents.close()
            raise
        own = self.certificate
        servers = [
            await websocket.serve(agents, self.relay.attach_agent, ssl_context=own.agents_context),
            await websocket.serve(
                gateways, self.relay.attach_gateway, ssl_context=own.gateways_context
            ),
        ]
        try:
            yield address_of(agents), address_of(gateways)
        finally:
            for server in servers:
                server.close()
            for relay_link in self.relay.links():
                relay_link.link.abort()

    @asynccontextmanager
    async def _ops(self) -> AsyncGenerator[str]:
        where = self._config.ops
        async with AsyncExitStack() as stack:
            made = relay_pages(self.relay, self._guards)
            pages = serve_pages(where.host, where.port, made, where.names)
            try:
                address = await stack.enter_async_context(pages)
            except OSError as error:
                raise unusable("ops", where, error) from error
            yield address

    def _take_services(self, services: Services) -> None:
        """Act on what a gateway sent about services' certificates, if the services CA signed it."""
        if services.revoked:
            try:
                rows = read_statement(services.revoked, self.certificate.services_ca_keys)
            except StatementRefused as error:
                log.warning("services.refused", reason=str(error), next="nothing was revoked")
            else:
                self.relay.revoke_services(rows)
        if services.certificate:
            self.certificate.take(services.certificate)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.relay.tick()


def _listen(
    section: str, where: AgentsListener | GatewaysListener, guard: ConnectionGuard
) -> GuardedSocket:
    try:
        return listen(where.host, where.port, guard.rate, guard.room)
    except OSError as error:
        raise unusable(section, where, error) from error


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
