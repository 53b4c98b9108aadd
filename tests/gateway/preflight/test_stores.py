from pathlib import Path

import msgspec
import pytest
from sqlalchemy.engine import make_url

from byoai_gateway import rate_windows
from byoai_gateway.config import DatabaseSection, GatewayConfig, LimitsSection, VaultSection
from byoai_gateway.control_plane import open_control_plane
from byoai_gateway.preflight.findings import Verdict
from byoai_gateway.preflight.stores import check_database, check_jwks, check_store, check_vault
from byoai_shared.private_files import write_new_file
from byoai_shared.secret import Secret
from support.postgres import PostgresServer
from support.provider import Provider
from support.provider_script import refusal, whole
from support.resp import PASSWORD, refusing_store


def of(section: DatabaseSection, name: str) -> DatabaseSection:
    """Another database of the same server."""
    url = make_url(section.url).set(database=name).render_as_string(hide_password=False)
    return msgspec.structs.replace(section, url=url)


async def test_a_database_of_a_gateway_answers(config: GatewayConfig) -> None:
    async with open_control_plane(config):
        pass
    (finding,) = await check_database(config.database)
    assert (finding.setting, finding.verdict) == ("database.url", Verdict.OK)
    assert "has a gateway's tables" in finding.message


async def test_an_empty_database_stays_empty(postgres: PostgresServer) -> None:
    async with postgres.database() as section:
        for _ in range(2):
            (finding,) = await check_database(of(section, "template1"))
            assert "is empty" in finding.message


async def test_a_database_that_the_server_does_not_have(postgres: PostgresServer) -> None:
    async with postgres.database() as section:
        (finding,) = await check_database(of(section, "missing"))
    assert finding.verdict is Verdict.FAILED
    assert "no database of the name" in finding.message


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql+asyncpg://byoai:secret@127.0.0.1:9/byoai", "connection is refused"),
        ("postgresql+asyncpg://byoai:secret@no-such-host.invalid/byoai", "does not resolve"),
        ("mysql+nodriver://h/byoai", "database.url"),
    ],
)
async def test_a_database_that_cannot_be_reached(url: str, message: str) -> None:
    (finding,) = await check_database(DatabaseSection(url=url))
    assert finding.verdict is Verdict.FAILED
    assert message in finding.message
    assert "secret" not in str(finding)


async def test_a_file_that_is_missing_is_not_made(tmp_path: Path) -> None:
    file = tmp_path / "gateway.db"
    (finding,) = await check_database(DatabaseSection(url=f"sqlite+aiosqlite:///{file}"))
    assert finding.verdict is Verdict.WARNING
    assert str(file) in finding.message
    elsewhere = f"sqlite+aiosqlite:///{tmp_path}/missing/gateway.db"
    (finding,) = await check_database(DatabaseSection(url=elsewhere))
    assert finding.verdict is Verdict.FAILED
    assert list(tmp_path.iterdir()) == []


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "gateway.db"
    file.write_bytes(b"something else entirely, longer than a header" * 100)
    (finding,) = await check_database(DatabaseSection(url=f"sqlite+aiosqlite:///{file}"))
    assert finding.verdict is Verdict.FAILED


async def test_a_store_that_refuses_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_windows, "QUESTION_S", 30.0)
    assert await check_store(LimitsSection()) == ()
    async with refusing_store(b"WRONGPASS invalid username-password pair") as store:
        (finding,) = await check_store(LimitsSection(store=store.address))
    assert (finding.setting, finding.verdict) == ("limits.store", Verdict.FAILED)
    assert "refused the user name or password" in finding.message
    assert PASSWORD not in str(finding)


async def test_a_store_that_is_not_there() -> None:
    (finding,) = await check_store(LimitsSection(store=Secret("redis://:secret@127.0.0.1:9/0")))
    assert (finding.setting, finding.verdict) == ("limits.store", Verdict.FAILED)
    assert "see that the store runs" in (finding.fix or "")


async def test_keys_of_users(default: Provider) -> None:
    assert await check_jwks(None) == ()
    default.expect(refusal(404), whole({"keys": []}), whole(b"<html>"))
    for message in ("status 404", "no usable key", "not a JSON Web Key Set"):
        (finding,) = await check_jwks(default.url)
        assert (finding.setting, finding.verdict) == ("users.jwks_url", Verdict.FAILED)
        assert message in finding.message


async def test_the_vaults_file(tmp_path: Path) -> None:
    file = tmp_path / "vault.key"
    (finding,) = await check_vault(VaultSection(key_file=file))
    assert finding.verdict is Verdict.WARNING
    assert not file.exists()
    write_new_file(file, b"a=b")
    (finding,) = await check_vault(VaultSection(key_file=file))
    assert finding.verdict is Verdict.OK
    file.chmod(0o644)
    (finding,) = await check_vault(VaultSection(key_file=file))
    assert finding.verdict is Verdict.FAILED
    assert f"chmod 600 {file}" in finding.message
    (finding,) = await check_vault(VaultSection(key_file=tmp_path))
    assert finding.verdict is Verdict.FAILED
    (finding,) = await check_vault(VaultSection(keys=Secret("a=b")))
    assert (finding.setting, finding.verdict) == ("vault.keys", Verdict.OK)
