import asyncio
import io
import json

import msgspec
import pytest
from sqlalchemy import select, update

from byoai_gateway.config import GatewayConfig, VaultSection
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.preferences.preferences import Changes, Setting
from byoai_gateway.preferences.rows import place_of
from byoai_gateway.schema import secrets
from byoai_gateway.vault import Place, Sealed, Vault, VaultError, VaultKeyMissing
from byoai_shared import logs
from byoai_shared.errors import ConfigError
from byoai_shared.secret import Secret
from support.control import FakeClock, invitation

ONE = Place("somebody", "one")
TWO = Place("somebody", "two")
KEY = Secret("sk-or-v1-canary-0123456789abcd")
WITH_KEY = Changes(keys={Setting.OPENROUTER_KEY: KEY})
OLD = "old=" + "A" * 43
NEW = "new=" + "B" * 42 + "A"


def keys(config: GatewayConfig, *lines: str) -> GatewayConfig:
    absent = config.vault.key_file.with_name("absent")
    vault = VaultSection(key_file=absent, keys=Secret("\n".join(lines)))
    return msgspec.structs.replace(config, vault=vault)


async def used(control: ControlPlane) -> set[str]:
    async with control.database.reading() as connection:
        return set(await connection.scalars(select(secrets.c.key_id)))


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
        key = await first.lookup.authentication_key(made.tunnel_id)
    async with open_control_plane(config, clock) as second:
        assert await second.lookup.authentication_key(made.tunnel_id) == key


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
        key = await before.lookup.authentication_key(made.tunnel_id)
    async with open_control_plane(keys(config, NEW, OLD), clock) as both:
        await both.tidy()
        assert await used(both) == {"new"}
    async with open_control_plane(keys(config, NEW), clock) as after:
        assert await after.lookup.authentication_key(made.tunnel_id) == key


async def test_gateways_in_the_middle_of_a_change_do_not_undo_each_others_work(
    config: GatewayConfig, clock: FakeClock
) -> None:
    async with open_control_plane(keys(config, OLD, NEW), clock) as behind:
        await behind.tidy()
        assert await used(behind) == {"old"}
        async with open_control_plane(keys(config, NEW, OLD), clock) as ahead:
            await ahead.tidy()
            assert await used(ahead) == {"new"}
            await invitation(behind)
            for one in (behind, ahead, behind):
                await one.tidy()
                assert await used(one) == {"old", "new"}
    async with open_control_plane(keys(config, NEW, OLD), clock) as last:
        await last.tidy()
        assert await used(last) == {"new"}


async def test_users_keys_that_need_an_unknown_key_are_to_be_entered_again_and_stop_nothing(
    config: GatewayConfig, clock: FakeClock
) -> None:
    async with open_control_plane(keys(config, OLD), clock) as before:
        await before.preferences.save("alice", WITH_KEY)
        await before.preferences.save("b" * 250, WITH_KEY)
        await before.preferences.save("carol", WITH_KEY)
        async with before.database.writing() as connection:
            damaged = secrets.c.owner.in_(
                [place_of(it, Setting.OPENROUTER_KEY).owner for it in ("alice", "b" * 250)]
            )
            await connection.execute(update(secrets).where(damaged).values(sealed=b"\x02damaged"))
    async with open_control_plane(keys(config, NEW, OLD), clock) as both:
        rewrapped = await both.secrets.rewrap(both.database)
        assert rewrapped.failed == 2
    log = io.StringIO()
    logs.configure(form="json", stream=log)
    async with open_control_plane(keys(config, NEW), clock) as after:
        (warning,) = map(json.loads, log.getvalue().splitlines())
        shown = {it: await after.preferences.of(it) for it in ("alice", "b" * 250, "carol")}
    assert (warning["event"], warning["level"]) == ("vault.users_keys_do_not_open", "warning")
    assert (warning["count"], warning["keys"]) == (2, ["old"])
    assert [it.needs_reentry for it in shown.values()] == [
        {Setting.OPENROUTER_KEY},
        {Setting.OPENROUTER_KEY},
        frozenset(),
    ]
    assert shown["carol"].openrouter_key == KEY


async def test_a_key_of_the_right_name_that_is_another_is_said_to_be(
    config: GatewayConfig, clock: FakeClock
) -> None:
    async with open_control_plane(keys(config, OLD), clock):
        pass
    other = "old=" + NEW.partition("=")[2]
    with pytest.raises(VaultError, match="known here as old is not the one that sealed it"):
        async with open_control_plane(keys(config, other), clock):
            pass


async def test_what_was_changed_meanwhile_is_not_sealed_anew(
    config: GatewayConfig, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_control_plane(keys(config, OLD), clock) as before:
        await before.preferences.save("alice", WITH_KEY)
    async with open_control_plane(keys(config, NEW, OLD), clock) as control:
        other, seal = Secret("another-canary-0123456789"), Vault.seal

        async def saving(vault: Vault, place: Place, secret: bytes) -> Sealed:
            with monkeypatch.context() as patch:
                patch.setattr(Vault, "seal", seal)
                if place == place_of("alice", Setting.OPENROUTER_KEY):
                    changes = Changes(keys={Setting.OPENROUTER_KEY: other})
                    await control.preferences.save("alice", changes)
                return await seal(vault, place, secret)

        monkeypatch.setattr(Vault, "seal", saving)
        await control.secrets.rewrap(control.database)
        assert (await control.preferences.of("alice")).openrouter_key == other
        assert await used(control) == {"new"}


async def test_nobody_who_writes_waits_for_keys_while_all_is_sealed_anew(
    config: GatewayConfig, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_control_plane(keys(config, OLD), clock):
        pass
    async with open_control_plane(keys(config, NEW, OLD), clock) as control:
        opened = Vault.open

        async def writing(vault: Vault, place: Place, sealed: Sealed) -> bytes:
            async with asyncio.timeout(50), control.database.writing():
                return await opened(vault, place, sealed)

        monkeypatch.setattr(Vault, "open", writing)
        assert (await control.secrets.rewrap(control.database)).done > 0
