"""Serves the gateway: listens, keeps the control plane up, and stops in order.

Stopping: first no new connection, then the answers under way, then the upkeep, last the
database; each step needs what comes after it.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from aiohttp import web

from byoai_gateway.api.app import create_app
from byoai_gateway.config import GatewayConfig, ListenSection
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.presence import PresenceMap
from byoai_shared.errors import ConfigError
from byoai_shared.logs import get_logger
from byoai_shared.tls import Credentials, server_context

log = get_logger("gateway")


async def serve(config: GatewayConfig, stop: asyncio.Event) -> None:
    """Serve until `stop` is set.

    Raises:
        ConfigError: a setting, a key or a file is wrong or missing.
        OSError: the address cannot be listened on.
    """
    async with (
        open_control_plane(config) as control,
        kept_up(control),
        listening(create_app(control, PresenceMap()), config.listen) as address,
    ):
        log.info("gateway.ready", address=address, url=config.public_url)
        await stop.wait()
        log.info("gateway.stopping", drain_s=config.listen.drain_s)


@asynccontextmanager
async def kept_up(control: ControlPlane) -> AsyncGenerator[None]:
    """Run the control plane's upkeep meanwhile."""
    async with asyncio.TaskGroup() as tasks:
        upkeep = tasks.create_task(control.keep_up())
        try:
            yield
        finally:
            upkeep.cancel()


@asynccontextmanager
async def listening(app: web.Application, settings: ListenSection) -> AsyncGenerator[str]:
    """Listen with an application; gives the bound address, `host:port`."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        site = web.TCPSite(
            runner,
            settings.host,
            settings.port,
            ssl_context=https_context(settings),
            shutdown_timeout=settings.drain_s,
        )
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"{host}:{port}"
    finally:
        await runner.cleanup()


def https_context(settings: ListenSection) -> ssl.SSLContext | None:
    """The TLS context of the public port; None when a proxy in front does TLS.

    Raises:
        ConfigError: the certificate or key cannot be read or used.
    """
    if settings.certificate is None or settings.key is None:
        return None
    try:
        credentials = Credentials(settings.certificate.read_bytes(), settings.key.read_bytes())
    except OSError as error:
        raise ConfigError(f"listen.certificate or listen.key: {error}") from error
    return server_context(credentials, client_ca_pem=None, alpn=("http/1.1",))
