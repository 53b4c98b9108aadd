"""Serves the gateway: listens, keeps control plane and links up, and stops in order.

Stopping: first no new connection, then the answers under way, then the operators' door (it shows
the stopping), the links to the relays, the upkeep, last the database; each step needs what comes
after it.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from aiohttp import web

from byoai_gateway.api.app import create_app
from byoai_gateway.config import GatewayConfig, ListenSection, OpsSection
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.data_path import DataPath, open_data_path
from byoai_gateway.front import Front
from byoai_gateway.metrics import GatewayCollector, metrics_page
from byoai_gateway.web_protocol import web_protocols
from byoai_shared.errors import ConfigError
from byoai_shared.listener import GuardedServer, TlsSettings
from byoai_shared.logs import get_logger
from byoai_shared.ops import ops_pages, serve_pages
from byoai_shared.private_files import read_key_file
from byoai_shared.tls import Credentials, server_context

log = get_logger("gateway")


async def serve(config: GatewayConfig, stop: asyncio.Event, hurry: asyncio.Event) -> None:
    """Serve until `stop` is set, then drain; `hurry` cuts the drain short.

    Raises:
        ConfigError: a setting, a key or a file is wrong or missing.
        OSError: the address cannot be listened on.
    """
    async with (
        open_control_plane(config) as control,
        kept_up(control),
        open_data_path(control) as data_path,
        watched(config.ops, data_path) as ops,
        listening(control, data_path, hurry) as address,
        asyncio.TaskGroup() as tasks,
    ):
        announcing = tasks.create_task(_announce(control, data_path, address, ops))
        await stop.wait()
        announcing.cancel()
        data_path.readiness.is_stopping = True
        log.info("gateway.stopping", drain_s=config.listen.drain_s)


async def _announce(control: ControlPlane, data_path: DataPath, address: str, ops: str) -> None:
    """Log that it serves, and what keeps it from serving although its settings are valid."""
    await control.look_once()
    reasons = await data_path.readiness.unmet()
    if reasons:
        log.warning(
            "gateway.not_ready",
            reason="; ".join(reasons),
            next="/readyz answers 503 until these are mended",
        )
    log.info("gateway.ready", address=address, url=control.config.public_url, ops=ops)


@asynccontextmanager
async def kept_up(control: ControlPlane) -> AsyncGenerator[None]:
    """Run the control plane's upkeep meanwhile."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(control.keep_up(stop))
        try:
            yield
        finally:
            stop.set()


@asynccontextmanager
async def watched(settings: OpsSection, data_path: DataPath) -> AsyncGenerator[str]:
    """Open the operators' door; gives the bound address, `host:port`."""
    collector = GatewayCollector(data_path)
    readiness = data_path.readiness
    pages = ops_pages(
        readiness.why_not,
        lambda: metrics_page(collector),
        warnings=readiness.warnings,
        degraded=readiness.degraded,
    )
    async with serve_pages(settings.host, settings.port, pages, settings.names) as address:
        yield address


@asynccontextmanager
async def listening(
    control: ControlPlane, data_path: DataPath, hurry: asyncio.Event
) -> AsyncGenerator[str]:
    """Open the public door; gives the bound address, `host:port`."""
    settings = control.config.listen
    app = create_app(
        control,
        data_path.links.presence,
        data_path.choices,
        data_path.readiness.why_not,
        close_connections=True,
    )
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        if runner.server is None:
            raise RuntimeError("the application is not set up")
        context = https_context(settings)
        tls = None if context is None else TlsSettings(context, settings.handshake_timeout_s)
        guard = data_path.guard
        front = data_path.front(web_protocols(runner.server, data_path.http, guard))
        server = GuardedServer.listen(settings.host, settings.port, guard, front.connection, tls)
        try:
            yield server.address
        finally:
            server.close()
            await _drain(front, settings.drain_s, hurry)
    finally:
        await runner.cleanup()


async def _drain(front: Front, drain_s: float, hurry: asyncio.Event) -> None:
    """Let the answers under way finish, for as long as nobody is in a hurry."""
    draining = asyncio.ensure_future(front.drain(drain_s))
    hurried = asyncio.ensure_future(hurry.wait())
    await asyncio.wait((draining, hurried), return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    if not draining.done():
        draining.cancel()
        await front.drain(0)


def https_context(settings: ListenSection) -> ssl.SSLContext | None:
    """The TLS context of the public port; None when a proxy in front does TLS.

    Raises:
        ConfigError: the certificate or key cannot be read or used.
    """
    if settings.certificate is None or settings.key is None:
        return None
    try:
        credentials = Credentials(settings.certificate.read_bytes(), read_key_file(settings.key))
    except OSError as error:
        raise ConfigError(f"listen.certificate or listen.key: {error}") from error
    return server_context(credentials, client_ca_pem=None, alpn=("http/1.1",))
