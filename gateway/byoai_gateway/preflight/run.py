"""Runs all checks at the same time, each within a limit, and collects what they found."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from byoai_gateway.config import GatewayConfig
from byoai_gateway.config_warnings import config_warnings
from byoai_gateway.preflight.findings import Finding, Verdict, doubtful, failed
from byoai_gateway.preflight.links import check_certificates, check_relay
from byoai_gateway.preflight.providers import check_default, check_openrouter
from byoai_gateway.preflight.stores import check_database, check_jwks, check_store, check_vault
from byoai_gateway.providers.outbound import Outbound

LIMIT_S: Final = 15.0

Check = Callable[[], Awaitable[Sequence[Finding]]]


async def run_checks(config: GatewayConfig) -> tuple[Finding, ...]:
    """Try everything that the settings name; it takes `LIMIT_S` at most."""
    outbound = Outbound(config.router.connect_s)
    checks: list[tuple[str, Check]] = [
        ("default_provider", partial(check_default, config.default_provider, outbound)),
        ("openrouter", partial(check_openrouter, config.openrouter, outbound)),
        ("database.url", partial(check_database, config.database)),
        ("vault.key_file", partial(check_vault, config.vault)),
        ("limits.store", partial(check_store, config.limits)),
        ("users.jwks_url", partial(check_jwks, config.users.jwks_url)),
        ("listen", partial(check_certificates, config.listen)),
        *(("relays", partial(check_relay, relay)) for relay in config.relays),
    ]
    try:
        found = await asyncio.gather(*(_timed(setting, check) for setting, check in checks))
    finally:
        outbound.close()
    tried = tuple(finding for findings in found for finding in findings)
    sound = {it.setting for it in tried if it.verdict is Verdict.OK}
    of_settings = (
        doubtful(it.setting, it.reason, it.next)
        for it in config_warnings(config)
        if it.setting not in sound  # an unusual address that works
    )
    return (*of_settings, *tried)


async def _timed(setting: str, check: Check) -> Sequence[Finding]:
    began = time.monotonic()
    try:
        async with asyncio.timeout(LIMIT_S):
            found = await check()
    except TimeoutError:
        fix = "check that what this setting leads to runs and answers"
        found = (failed(setting, f"no result within {LIMIT_S:g} s", fix),)
    took_ms = round((time.monotonic() - began) * 1000)
    return tuple(replace(it, duration_ms=took_ms) for it in found)
