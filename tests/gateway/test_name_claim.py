"""Two gateways of one name on one database, SQLite and PostgreSQL."""

import errno
import fcntl
import os
from pathlib import Path

import msgspec
import pytest

from byoai_gateway.config import GatewayConfig, GatewaySection
from byoai_gateway.control_plane import open_control_plane
from support.control import FakeClock
from support.logged import Logged


def named(config: GatewayConfig, name: str) -> GatewayConfig:
    return msgspec.structs.replace(config, gateway=GatewaySection(name=name))


async def test_a_gateway_of_the_same_name_is_found_until_it_ends(
    config: GatewayConfig, clock: FakeClock, logged: Logged
) -> None:
    async with open_control_plane(config, clock) as first:
        await first.name_claim.refresh()
        assert first.name_claim.warning is None
        async with open_control_plane(config, clock) as second:
            await second.name_claim.refresh()
            await second.name_claim.refresh()
            assert second.name_claim.warning is not None
            assert second.name_claim.warning.startswith("gateway.name: ")
            (said,) = logged.lines("gateway.name_shared")
            assert said["setting"] == "gateway.name"
        await first.name_claim.refresh()
        assert first.name_claim.warning is None
    async with open_control_plane(config, clock) as third:
        await third.name_claim.refresh()
        assert third.name_claim.warning is None


async def test_gateways_of_other_names_and_commands_are_no_namesakes(
    config: GatewayConfig, clock: FakeClock
) -> None:
    # As long as a name may be: PostgreSQL cuts labels that are longer.
    names = ("a" * 62 + "1", "a" * 62 + "2")
    async with (
        open_control_plane(named(config, names[0]), clock) as first,
        open_control_plane(named(config, names[1]), clock) as second,
        open_control_plane(named(config, names[1]), clock),
    ):
        for claim in (first.name_claim, second.name_claim) * 2:
            await claim.refresh()
            assert claim.warning is None


async def test_where_no_lock_can_be_made_nothing_is_claimed(
    config: GatewayConfig, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_control_plane(config, clock) as control:
        monkeypatch.setattr(control.name_claim, "_lock_path", Path("/proc/no-such-folder/lock"))
        await control.name_claim.refresh()
        assert control.name_claim.warning is None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
async def test_where_the_file_system_knows_no_locks_no_other_gateway_is_reported(
    config: GatewayConfig, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    async with open_control_plane(config, clock) as control:
        control.name_claim.close()
        monkeypatch.setattr(fcntl, "flock", refuse)
        await control.name_claim.refresh()
        assert control.name_claim.warning is None
