import asyncio
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select

from byoai_gateway.cli import main
from byoai_gateway.config import GatewayConfig
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.key_file import add_first_key, add_last_key
from byoai_gateway.key_ring import load_ring
from byoai_gateway.preferences.preferences import Changes, Setting
from byoai_gateway.schema import audit_log
from byoai_gateway.vault import VaultKeyMissing
from byoai_shared import logs
from byoai_shared.errors import ConfigError
from byoai_shared.secret import Secret
from support.control import FakeClock, joined_agent

KEY = Secret("sk-or-v1-canary-0123456789abcd")
WITH_KEY = Changes(keys={Setting.OPENROUTER_KEY: KEY})


@pytest.fixture
def settings(config: GatewayConfig, tmp_path: Path) -> Path:
    """The settings as a file, for the commands."""
    file = tmp_path / "gateway.toml"
    values = {"database.url": config.database.url, "vault.key_file": str(config.vault.key_file)}
    file.write_text("".join(f"{name} = {json.dumps(it)}\n" for name, it in values.items()))
    return file


async def forget(settings: Path, *arguments: str) -> Result:
    """The command has an event loop of its own."""
    command = ["keys", "forget", *arguments, "--config", str(settings)]
    return await asyncio.to_thread(CliRunner().invoke, main, command)


def key_ids(config: GatewayConfig) -> list[str]:
    ring = load_ring(config.vault)
    return list(ring.keys) if ring else []


def take_away(config: GatewayConfig, key_id: str) -> None:
    lines = config.vault.key_file.read_text().splitlines(keepends=True)
    config.vault.key_file.write_text("".join(it for it in lines if not it.startswith(key_id)))


async def settle(config: GatewayConfig, clock: FakeClock) -> str:
    """A gateway with a tunnel and a user's key; answers the key that sealed it all."""
    async with open_control_plane(config, clock) as control:
        await joined_agent(control)
        await control.preferences.save("alice", WITH_KEY)
    (key_id,) = key_ids(config)
    return key_id


async def with_a_key_lost_to_users_only(config: GatewayConfig, clock: FakeClock) -> str:
    first = await settle(config, clock)
    lost = add_first_key(config.vault.key_file)
    async with open_control_plane(config, clock) as control:
        await control.preferences.save("alice", WITH_KEY)
    take_away(config, lost)
    assert key_ids(config) == [first]
    return lost


async def reentry(control: ControlPlane) -> frozenset[str]:
    return (await control.preferences.show("alice")).preferences.needs_reentry


async def test_users_are_asked_again_before_and_after_their_lost_key_is_forgotten(
    config: GatewayConfig, clock: FakeClock, settings: Path
) -> None:
    lost = await with_a_key_lost_to_users_only(config, clock)
    async with open_control_plane(config, clock) as control:
        assert await reentry(control) == {Setting.OPENROUTER_KEY}
    log = io.StringIO()
    assert (await forget(settings, lost, "--yes")).exit_code == 0
    logs.configure(form="json", stream=log)
    async with open_control_plane(config, clock) as control:
        assert log.getvalue() == "", "nothing is missed any more"
        assert await reentry(control) == {Setting.OPENROUTER_KEY}
        add_first_key(config.vault.key_file)
        assert (await control.secrets.rewrap(control.database)).failed == 0
        await control.preferences.save("alice", WITH_KEY)
        assert await reentry(control) == frozenset()


async def test_without_yes_it_only_counts(
    config: GatewayConfig, clock: FakeClock, settings: Path
) -> None:
    lost = await with_a_key_lost_to_users_only(config, clock)
    asked = await forget(settings, lost)
    assert asked.exit_code == 1
    assert asked.stdout == (
        f"key {lost} sealed 1 keys of users, 0 keys of tunnels and 0 of the gateway itself\n"
    )
    assert "--yes" in asked.stderr
    assert (await forget(settings, lost)).stdout == asked.stdout


async def test_a_key_that_is_known_or_unheard_of_is_not_forgotten(
    config: GatewayConfig, clock: FakeClock, settings: Path
) -> None:
    key_id = await settle(config, clock)
    known = await forget(settings, key_id, "--yes")
    unheard = await forget(settings, "unheard-of", "--yes")
    assert (known.exit_code, unheard.exit_code) == (1, 1)
    assert "is not lost" in known.stderr
    assert f"keys in use: {key_id}" in unheard.stderr
    async with open_control_plane(config, clock) as control:
        assert await reentry(control) == frozenset()


@pytest.mark.parametrize("whole_file", [True, False])
async def test_a_gateway_that_lost_the_key_of_everything_starts_again_once_it_is_forgotten(
    config: GatewayConfig, clock: FakeClock, settings: Path, *, whole_file: bool
) -> None:
    lost = await settle(config, clock)
    if whole_file:
        config.vault.key_file.unlink()
    else:
        add_last_key(config.vault.key_file)
        take_away(config, lost)
    with pytest.raises(ConfigError if whole_file else VaultKeyMissing, match=lost):
        async with open_control_plane(config, clock):
            pass
    forgot = await forget(settings, lost, "--yes")
    assert forgot.exit_code == 0
    assert "issue-relay-certificate" in forgot.stdout
    async with open_control_plane(config, clock) as control:
        assert await reentry(control) == {Setting.OPENROUTER_KEY}
        (tunnel,) = await control.registry.tunnels_of("alice")
        assert (await control.lookup.authentication_key(tunnel.tunnel_id)).reveal()
        await joined_agent(control, "bob")
        async with control.database.reading() as connection:
            entries = (
                await connection.execute(
                    select(audit_log).where(audit_log.c.action == "vault.key_forgotten")
                )
            ).all()
    assert [(it.actor, it.user_id, it.subject) for it in entries] == [("operator", None, lost)]


async def test_an_agent_goes_on_with_the_key_that_replaces_a_lost_one(
    config: GatewayConfig, clock: FakeClock, settings: Path
) -> None:
    async with open_control_plane(config, clock) as control:
        agent = await joined_agent(control)
    (lost,) = key_ids(config)
    config.vault.key_file.unlink()
    assert (await forget(settings, lost, "--yes")).exit_code == 0
    async with open_control_plane(config, clock) as control:
        agent.control = control
        sent = await control.lookup.authentication_key(agent.tunnel_id)
        assert (await agent.token()).authentication_keys == [sent.reveal()]
