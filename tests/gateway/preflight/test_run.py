import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from byoai_gateway.config import GatewayConfig
from byoai_gateway.preflight import run
from byoai_gateway.preflight.findings import Finding, Verdict, passed
from byoai_gateway.preflight.run import run_checks
from byoai_gateway.provider_config import DefaultProviderSection, OpenRouterSection
from support.control import gateway_config
from support.provider import Provider
from support.provider_script import MODEL, refusal, whole


def asking(directory: Path, default: Provider, base_url: str) -> GatewayConfig:
    """Settings without relays, whose providers are both this one."""
    config = gateway_config(
        directory,
        default_provider=DefaultProviderSection(base_url=base_url),
        openrouter=OpenRouterSection(base_url=default.url),
    )
    return msgspec.structs.replace(config, relays=())


async def test_an_unusual_address_that_works_is_not_warned_of(
    tmp_path: Path, default: Provider
) -> None:
    default.always(whole({"data": [{"id": MODEL}]}))
    base_url = f"http://127.0.0.1:{default.port}"
    findings = await run_checks(asking(tmp_path, default, base_url))
    of_address = [it for it in findings if it.setting == "default_provider.base_url"]
    assert [it.verdict for it in of_address] == [Verdict.OK]
    default.always(refusal(404))
    findings = await run_checks(asking(tmp_path, default, base_url))
    of_address = [it for it in findings if it.setting == "default_provider.base_url"]
    assert [it.verdict for it in of_address] == [Verdict.WARNING, Verdict.FAILED]
    assert of_address[1].fix == (
        "give the address that the provider's documentation names for OpenAI clients; it usually "
        "ends with /v1"
    )


NAMES = (
    "check_default",
    "check_openrouter",
    "check_database",
    "check_vault",
    "check_store",
    "check_jwks",
    "check_certificates",
)


async def test_all_is_tried_at_the_same_time(
    tmp_path: Path, default: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    everyone = asyncio.Barrier(len(NAMES))

    async def meets(*_: object) -> Sequence[Finding]:
        await everyone.wait()
        return (passed("a", "b"),)

    for name in NAMES:
        monkeypatch.setattr(run, name, meets)
    findings = await run_checks(asking(tmp_path, default, default.url))
    assert sum(it.verdict is Verdict.OK for it in findings) == len(NAMES)


async def test_what_does_not_end_is_given_up(
    tmp_path: Path, default: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(*_: object) -> Sequence[Finding]:
        await asyncio.Event().wait()
        return ()

    async def ends(*_: object) -> Sequence[Finding]:
        return ()

    for name in NAMES:
        monkeypatch.setattr(run, name, hangs if name == "check_database" else ends)
    monkeypatch.setattr(run, "LIMIT_S", 0.01)
    findings = await run_checks(asking(tmp_path, default, default.url))
    failed = [it for it in findings if it.verdict is Verdict.FAILED]
    assert [(it.setting, it.message) for it in failed] == [
        ("database.url", "no result within 0.01 s")
    ]
