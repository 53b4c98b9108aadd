import asyncio
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import select, update

from byoai_gateway.cli import main
from byoai_gateway.config import GatewayConfig, VaultSection
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.key_file import KeyFile, add_first_key, add_last_key, make_first
from byoai_gateway.key_ring import KeyRing, create_ring, load_ring
from byoai_gateway.preferences.preferences import Changes, Setting
from byoai_gateway.preferences.rows import place_of
from byoai_gateway.schema import audit_log, secrets
from byoai_shared.config import ConfigError
from byoai_shared.secret import Secret
from support.control import FakeClock, gateway_config

KEY = Secret("sk-or-v1-canary-0123456789abcd")
WITH_KEY = Changes(keys={Setting.OPENROUTER_KEY: KEY})


def key_file(directory: Path) -> tuple[KeyFile, Path]:
    path = directory / "vault.key"
    return KeyFile(VaultSection(key_file=path), create_ring(path)), path


async def key_ids(control: ControlPlane) -> set[str]:
    async with control.database.reading() as connection:
        return set(await connection.scalars(select(secrets.c.key_id).distinct()))


def test_a_new_key_comes_first_and_the_others_stay(tmp_path: Path) -> None:
    _, path = key_file(tmp_path)
    before = load_ring(VaultSection(key_file=path))
    key_id = add_first_key(path)
    after = load_ring(VaultSection(key_file=path))
    assert before is not None
    assert after is not None
    assert after.current == key_id
    assert list(after.keys) == [key_id, before.current]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [it.name for it in tmp_path.iterdir()] == ["vault.key"]


def test_the_comment_at_the_top_stays_there(tmp_path: Path) -> None:
    _, path = key_file(tmp_path)
    comment = path.read_text().splitlines()[0]
    assert comment.startswith("#")
    first = add_first_key(path)
    assert path.read_text().startswith(f"{comment}\n{first}=")
    prepared = add_last_key(path)
    make_first(path, prepared)
    assert path.read_text().startswith(f"{comment}\n{prepared}=")


def test_a_key_that_is_prepared_seals_only_when_it_is_made_the_first(tmp_path: Path) -> None:
    keys, path = key_file(tmp_path)
    first = keys.current
    prepared = add_last_key(path)
    assert keys.current == first
    assert keys.knows(prepared)
    make_first(path, prepared)
    assert keys.current == prepared
    assert keys.knows(first)
    assert path.read_text().count("=") == 2
    before = path.read_text()
    with pytest.raises(ConfigError, match="holds no key absent"):
        make_first(path, "absent")
    assert path.read_text() == before
    assert [it.name for it in tmp_path.iterdir()] == ["vault.key"]


def test_two_rotations_at_once_do_not_lose_a_key(tmp_path: Path) -> None:
    _, path = key_file(tmp_path)
    before = path.read_text()
    (tmp_path / "vault.key.new").touch()
    with pytest.raises(ConfigError, match="another rotation is running"):
        add_first_key(path)
    assert path.read_text() == before


def test_a_file_that_root_changes_stays_its_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = key_file(tmp_path)
    owner = path.stat()
    given: list[tuple[int, int]] = []

    def give(_: int, user: int, group: int) -> None:
        given.append((user, group))

    monkeypatch.setattr(os, "fchown", give)
    add_first_key(path)
    assert given == []
    monkeypatch.setattr(os, "geteuid", lambda: owner.st_uid + 1)
    add_first_key(path)
    assert given == [(owner.st_uid, owner.st_gid)]


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot change"):
        add_first_key(tmp_path / "vault.key")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_file_is_noticed_before_sealing_and_before_a_key_is_unknown(
    tmp_path: Path,
) -> None:
    keys, path = key_file(tmp_path)
    first = keys.current
    second = add_first_key(path)
    assert keys.knows(second)
    third = add_first_key(path)
    assert keys.current == third
    assert all(keys.knows(it) for it in (first, second, third))
    assert not keys.knows("unheard-of")


@pytest.mark.parametrize("damage", ["gone", "no keys", "open to all"])
def test_a_file_that_cannot_be_read_leaves_the_known_keys(tmp_path: Path, damage: str) -> None:
    keys, path = key_file(tmp_path)
    known = keys.current
    match damage:
        case "gone":
            path.unlink()
        case "no keys":
            path.write_text("not a key\n")
        case _:
            add_first_key(path)
            path.chmod(0o644)
    assert keys.current == known
    assert keys.knows(known)


async def test_a_gateway_that_serves_follows_a_rotation_beside_it(
    config: GatewayConfig, clock: FakeClock
) -> None:
    async with open_control_plane(config, clock) as serving:
        await serving.preferences.save("alice", WITH_KEY)
        (old,) = await key_ids(serving)
        async with open_control_plane(config, clock) as beside:
            new = add_first_key(config.vault.key_file)
            assert (await beside.secrets.rewrap(beside.database)).failed == 0
        assert await key_ids(serving) == {new}
        shown = await serving.preferences.show("alice")
        assert shown.preferences.openrouter_key == KEY
        # Its own upkeep does not go back to the old key.
        await serving.tidy()
        await serving.preferences.save("bob", WITH_KEY)
        assert await key_ids(serving) == {new}
        assert old != new


async def test_a_record_that_does_not_open_stops_no_rotation(
    config: GatewayConfig, clock: FakeClock
) -> None:
    async with open_control_plane(config, clock) as control:
        await control.preferences.save("alice", WITH_KEY)
        await control.preferences.save("bob", WITH_KEY)
        place = place_of("alice", Setting.OPENROUTER_KEY)
        async with control.database.writing() as connection:
            await connection.execute(
                update(secrets).where(secrets.c.owner == place.owner).values(sealed=b"\x02")
            )
        new = add_first_key(config.vault.key_file)
        assert (await control.secrets.rewrap(control.database)).failed == 1
        await control.tidy()
        assert (await control.preferences.of("bob")).openrouter_key == KEY
        async with control.database.reading() as connection:
            rows = await connection.execute(select(secrets.c.owner, secrets.c.key_id))
            old_ones = [row.owner for row in rows if row.key_id != new]
    assert old_ones == [place.owner]


def test_keys_that_come_from_the_settings_are_not_rotated_by_command(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f'vault.keys = "one={"A" * 43}"\n')
    result = CliRunner().invoke(main, ["keys", "rotate", "--config", str(file)])
    assert result.exit_code == 1
    assert "vault.keys" in result.stderr


@pytest.fixture
async def settings(tmp_path: Path) -> Path:
    file = tmp_path / "gateway.toml"
    file.write_text(
        f'database.url = "sqlite+aiosqlite:///{tmp_path / "gateway.db"}"\n'
        f'vault.key_file = "{tmp_path / "vault.key"}"\n'
    )
    async with open_control_plane(gateway_config(tmp_path)):
        return file


def rotate(settings: Path, *options: str) -> str:
    result = CliRunner().invoke(main, ["keys", "rotate", *options, "--config", str(settings)])
    assert result.exit_code == 0, result.output
    return result.stdout


def ring(settings: Path) -> KeyRing:
    found = load_ring(VaultSection(key_file=settings.with_name("vault.key")))
    assert found is not None
    return found


def test_the_command_rotates_and_says_so(settings: Path) -> None:
    for keys in (2, 3):
        said = rotate(settings)
        assert said.startswith(f"{ring(settings).current} seals from now on")
        assert "anew: 0" not in said
        assert len(ring(settings).keys) == keys


async def test_a_rotation_by_command_is_written_down(settings: Path, tmp_path: Path) -> None:
    def by_command() -> list[str]:
        rotate(settings)
        first = ring(settings).current
        rotate(settings, "--prepare")
        return [first, list(ring(settings).keys)[-1]]

    changed, added = await asyncio.to_thread(by_command)
    async with (
        open_control_plane(gateway_config(tmp_path)) as control,
        control.database.reading() as connection,
    ):
        rows = (await connection.execute(select(audit_log).order_by(audit_log.c.entry_id))).all()
    assert [(it.actor, it.user_id, it.action, it.subject) for it in rows] == [
        ("operator", None, "vault.key_changed", changed),
        ("operator", None, "vault.key_added", added),
    ]


def test_for_several_hosts_the_command_goes_in_two_steps(settings: Path) -> None:
    said = rotate(settings, "--prepare")
    *_, prepared = ring(settings).keys
    assert f"--to {prepared}" in said
    assert ring(settings).current != prepared
    rotate(settings, "--to", prepared)
    assert ring(settings).current == prepared
    arguments = ["keys", "rotate", "--prepare", "--to", prepared, "--config", str(settings)]
    assert CliRunner().invoke(main, arguments).exit_code == 2
