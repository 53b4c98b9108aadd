import msgspec
import pytest
from sqlalchemy import select, update

from byoai_gateway.config import GatewayConfig, VaultSection
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.schema import secrets
from byoai_gateway.vault import Place, VaultError, VaultKeyMissing
from byoai_shared.errors import ConfigError
from byoai_shared.secret import Secret
from support.control import FakeClock, invitation

ONE = Place("somebody", "one")
TWO = Place("somebody", "two")
OLD = "old=" + "A" * 43
NEW = "new=" + "B" * 42 + "A"


def keys(config: GatewayConfig, *lines: str) -> GatewayConfig:
    absent = config.vault.key_file.with_name("absent")
    vault = VaultSection(key_file=absent, keys=Secret("\n".join(lines)))
    return msgspec.structs.replace(config, vault=vault)


async def test_secrets_are_stored_sealed_and_opened(control: ControlPlane) -> None:
    async with control.database.writing() as connection:
        await control.secrets.put(connection, ONE, b"a plain canary")
        assert await control.secrets.get(connection, ONE) == b"a plain canary"
        rows = (await connection.execute(select(secrets))).all()
    assert not any(b"canary" in row.sealed for row in rows)


async def test_rows_that_were_swapped_do_not_open(control: ControlPlane) -> None:
    async with control.database.writing() as connection:
        await control.secrets.put(connection, ONE, b"1")
        await control.secrets.put(connection, TWO, b"2")
        sealed = (
            await connection.execute(select(secrets.c.sealed).where(secrets.c.field == "one"))
        ).scalar_one()
        await connection.execute(
            update(secrets).where(secrets.c.field == "two").values(sealed=sealed)
        )
        with pytest.raises(VaultError, match="moved from another row"):
            await control.secrets.get(connection, TWO)


async def test_the_first_start_makes_a_key_and_the_second_uses_it(
    config: GatewayConfig, clock: FakeClock
) -> None:
    async with open_control_plane(config, clock) as first:
        made = await invitation(first)
        key = await first.registry.authentication_key(made.tunnel_id)
    async with open_control_plane(config, clock) as second:
        assert await second.registry.authentication_key(made.tunnel_id) == key


async def test_a_start_without_the_key_file_names_file_and_key(
    config: GatewayConfig, clock: FakeClock
) -> None:
    async with open_control_plane(config, clock):
        pass
    key_id = config.vault.key_file.read_text().splitlines()[1].partition("=")[0]
    config.vault.key_file.unlink()
    with pytest.raises(ConfigError, match=f"vault.key is missing.*{key_id}"):
        async with open_control_plane(config, clock):
            pass
    assert not config.vault.key_file.exists()


async def test_a_start_with_another_key_names_the_missing_one(
    config: GatewayConfig, clock: FakeClock
) -> None:
    async with open_control_plane(keys(config, OLD), clock):
        pass
    with pytest.raises(VaultKeyMissing, match="key old,"):
        async with open_control_plane(keys(config, NEW), clock):
            pass


async def test_after_a_change_of_keys_all_is_wrapped_anew_and_the_old_one_may_go(
    config: GatewayConfig, clock: FakeClock
) -> None:
    async with open_control_plane(keys(config, OLD), clock) as before:
        made = await invitation(before)
        key = await before.registry.authentication_key(made.tunnel_id)
    async with (
        open_control_plane(keys(config, NEW, OLD), clock) as both,
        both.database.reading() as connection,
    ):
        used = set(await connection.scalars(select(secrets.c.key_id)))
    assert used == {"new"}
    async with open_control_plane(keys(config, NEW), clock) as after:
        assert await after.registry.authentication_key(made.tunnel_id) == key


async def test_gateways_in_the_middle_of_a_change_do_not_undo_each_others_work(
    config: GatewayConfig, clock: FakeClock
) -> None:
    async def used(control: ControlPlane) -> set[str]:
        async with control.database.reading() as connection:
            return set(await connection.scalars(select(secrets.c.key_id)))

    async with open_control_plane(keys(config, OLD, NEW), clock) as behind:
        assert await used(behind) == {"old"}
        async with open_control_plane(keys(config, NEW, OLD), clock) as ahead:
            assert await used(ahead) == {"new"}
            await invitation(behind)
            for one in (behind, ahead, behind):
                await one.tidy()
                assert await used(one) == {"old", "new"}
    async with open_control_plane(keys(config, NEW, OLD), clock) as last:
        assert await used(last) == {"new"}
