import asyncio
import io
import os
import sys
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from byoai_gateway.config import GatewayConfig, ListenSection, PublicSection, TokensSection
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.database import Database, DatabaseUnavailable
from byoai_gateway.engines import DatabaseError
from byoai_gateway.key_file import add_first_key
from byoai_gateway.schema import join_codes
from byoai_gateway.sealed_secrets import SealedSecrets
from byoai_gateway.server import kept_up
from byoai_gateway.trust import TrustSource
from byoai_shared import logs
from byoai_shared.config import ConfigError
from byoai_shared.identity import GatewayIdentity, certificate_identity
from byoai_shared.private_files import NotPrivate
from byoai_shared.tls import client_context
from support.control import FakeClock, gateway_config, invitation, sqlite
from support.postgres import PostgresServer

DAY = 86_400


async def test_unsafe_settings_stop_the_start_before_anything_is_made(
    tmp_path: Path, clock: FakeClock
) -> None:
    config = gateway_config(
        tmp_path, database=sqlite(tmp_path), public=PublicSection(url="http://example.com")
    )
    with pytest.raises(ConfigError):
        async with open_control_plane(config, clock):
            pass
    assert list(tmp_path.iterdir()) == []


async def test_a_private_ca_that_is_none_stops_the_start(tmp_path: Path, clock: FakeClock) -> None:
    config = gateway_config(tmp_path, listen=ListenSection(ca=tmp_path / "absent.pem"))
    with pytest.raises(ConfigError, match=r"listen\.ca"):
        async with open_control_plane(config, clock):
            pass


@pytest.mark.skipif(sys.platform == "win32", reason="no mode bits on Windows")
async def test_a_state_directory_that_every_account_writes_stops_the_start(
    config: GatewayConfig, clock: FakeClock, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    before = list(tmp_path.iterdir())
    with pytest.raises(NotPrivate, match=f"chmod o-w {tmp_path}"):
        async with open_control_plane(config, clock):
            pass
    assert list(tmp_path.iterdir()) == before


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root gives directories away"
)
async def test_a_state_directory_of_another_account_stops_the_start(
    config: GatewayConfig, clock: FakeClock, tmp_path: Path
) -> None:
    os.chown(tmp_path, 4242, 4242)
    with pytest.raises(NotPrivate, match="user id 4242"):
        async with open_control_plane(config, clock):
            pass


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root makes such a directory"
)
async def test_a_vault_key_is_read_from_a_kubernetes_volume(
    clock: FakeClock, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o1777)
    config = gateway_config(tmp_path)
    vault = msgspec.structs.replace(config.vault, key_file=volume / "key")
    config = msgspec.structs.replace(config, vault=vault)
    async with open_control_plane(config, clock):
        pass
    tmp_path.chmod(0o1777)
    with pytest.raises(NotPrivate, match=f"chmod o-w {tmp_path}"):  # where the database is
        async with open_control_plane(config, clock):
            pass


def leaf(control: ControlPlane) -> x509.Certificate:
    return x509.load_pem_x509_certificate(control.own_identity.credentials.certificate_pem)


async def test_its_own_certificate_names_it_and_is_renewed_in_time(
    control: ControlPlane, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = leaf(control)
    identity = certificate_identity(first.public_bytes(Encoding.DER))
    assert identity == GatewayIdentity("gateway")
    own = control.own_identity
    client_context(server_ca_pem=own.services_ca_pem, credentials=own.credentials)
    assert first.not_valid_after_utc.timestamp() == clock() + 7 * DAY
    look = control._look()
    clock.advance(3.5 * DAY - 1)
    await look()
    assert leaf(control) == first

    async def away() -> bool:
        raise DatabaseUnavailable

    monkeypatch.setattr(control.trust, "refresh", away)
    clock.advance(1)
    with pytest.raises(DatabaseUnavailable):
        await look()
    second = leaf(control)
    assert second.public_key() != first.public_key()
    assert second.not_valid_after_utc > first.not_valid_after_utc


async def test_codes_that_are_long_over_are_forgotten(
    control: ControlPlane, clock: FakeClock
) -> None:
    await invitation(control)
    clock.advance(900 + DAY)
    await control.tidy()
    async with control.database.reading() as connection:
        assert len((await connection.execute(select(join_codes))).all()) == 1
    clock.advance(1)
    await control.tidy()
    async with control.database.reading() as connection:
        assert (await connection.execute(select(join_codes))).all() == []


async def test_upkeep_goes_on_after_a_failure_and_logs_no_row(
    control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = io.StringIO()
    logs.configure(form="json", stream=log)
    monkeypatch.setattr("byoai_gateway.control_plane._LOOK_S", 0.0)
    asked = 0
    again = asyncio.Event()

    async def failing(_: TrustSource) -> bool:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise OperationalError("a canary", None, Exception("a canary"))
        again.set()
        return False

    monkeypatch.setattr(TrustSource, "refresh", failing)
    async with kept_up(control), asyncio.timeout(50):
        await again.wait()
    assert log.getvalue().count("upkeep.failed") == 2
    assert "canary" not in log.getvalue()


async def test_what_others_change_is_published_while_a_large_database_is_tidied(
    control: ControlPlane, config: GatewayConfig, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("byoai_gateway.control_plane._LOOK_S", 0.01)
    tidying, may_end = asyncio.Event(), asyncio.Event()

    async def long(*_: object) -> None:
        tidying.set()
        await may_end.wait()

    monkeypatch.setattr(SealedSecrets, "follow_key", long)
    (leaked,) = control.signing_keys.known
    async with asyncio.timeout(50), kept_up(control):
        await tidying.wait()
        async with open_control_plane(config, clock) as other:
            before = control.trust.held.revision
            await other.signing_keys.drop(leaked.kid)
        await control.trust.changed(before)
        may_end.set()
    assert leaked.kid not in {key["kid"] for key in (await control.trust.since(0)).keys}


async def test_to_tidy_ends_early_when_the_gateway_stops(
    config: GatewayConfig, clock: FakeClock
) -> None:
    async with open_control_plane(config, clock) as control:
        add_first_key(config.vault.key_file)
        stopped = await control.secrets.rewrap(control.database, lambda: True)
        assert stopped.done == 0
        await control.tidy(lambda: True)
        await control.tidy()
        assert (await control.secrets.rewrap(control.database)).done == 0


async def test_a_database_that_is_to_be_there_is_not_made(tmp_path: Path, clock: FakeClock) -> None:
    config = gateway_config(tmp_path, database=sqlite(tmp_path))
    with pytest.raises(DatabaseError, match=str(tmp_path / "gateway.db")):
        async with open_control_plane(config, clock, may_create=False):
            pass
    assert list(tmp_path.iterdir()) == []


async def test_keys_that_are_to_be_there_are_not_made(
    config: GatewayConfig, clock: FakeClock
) -> None:
    await (await Database.open(config.database)).close()
    with pytest.raises(ConfigError, match=str(config.vault.key_file)):
        async with open_control_plane(config, clock, may_create=False):
            pass
    assert not config.vault.key_file.exists()


async def test_a_database_without_a_gateways_tables_is_not_taken_for_one(
    postgres: PostgresServer, tmp_path: Path, clock: FakeClock
) -> None:
    async with postgres.database("template0") as section:
        config = gateway_config(tmp_path, database=section)
        with pytest.raises(DatabaseError, match=r"no database of a gateway in postgresql"):
            async with open_control_plane(config, clock, may_create=False):
                pass
        async with open_control_plane(config, clock):
            pass
        async with open_control_plane(config, clock, may_create=False):
            pass


async def test_signing_keys_of_seconds_rotate_by_themselves(
    config: GatewayConfig, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("byoai_gateway.control_plane._LOOK_S", 0.0)
    rules = TokensSection(rotate_after_s=20, publish_ahead_s=4)
    config = msgspec.structs.replace(config, tokens=rules)
    async with open_control_plane(config, clock) as control, kept_up(control):
        first = control.signing_keys.known
        async with asyncio.timeout(50):
            while control.signing_keys.known == first:
                clock.advance(1)
                await asyncio.sleep(0)
        assert len(control.signing_keys.known) == 2


async def test_two_gateways_share_one_database(
    config: GatewayConfig, control: ControlPlane, clock: FakeClock
) -> None:
    async with open_control_plane(config, clock) as other:
        assert other.signing_keys.known == control.signing_keys.known
        assert await other.trust.since(0) == await control.trust.since(0)
        made = await invitation(other)
        found = await control.registry.find("alice", made.tunnel_id)
        assert found.tunnel_id == made.tunnel_id
