"""Many revocations: by one account as fast as it is let, and by a great many accounts at once."""

import asyncio
import os
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from byoai_agent.control import GatewayRefused
from demo.processes import ProcessError
from hostile.place import ANSWER_S, NotRefused, Place, Size

_COVERED: Final = """
    SELECT 1 FROM denials WHERE denied_at <=
    (SELECT value FROM counters WHERE name = 'denials_cutoff') LIMIT 1
"""
LOOK_S: Final = 0.5

MOST_CHANGES: Final = 400
"""Twice what all limits together let one account do in a minute."""
SENT: Final = 100_000
"""Of more than these the oldest are replaced by one rule, which may cover them all."""
HELD: Final = 200_000
"""What a relay holds at most; see docs/protocol.md."""


async def changes_until_refused(place: Place, _size: Size) -> str:
    """Register and delete tunnels, then renew a certificate, each until the gateway refuses."""
    tunnels = await _count_until_429(lambda: _register_and_delete(place))
    renewals = 0
    try:
        while renewals < MOST_CHANGES:
            await place.account.renew()
            renewals += 1
    except GatewayRefused as refused:
        if refused.status != 429:
            raise
    if max(tunnels, renewals) >= MOST_CHANGES:
        raise NotRefused(f"{tunnels} tunnels and {renewals} renewals were let through")
    return f"{tunnels} tunnels deleted, {renewals} renewals, then 429"


async def _register_and_delete(place: Place) -> None:
    stack, token = place.stack, place.trudy.token
    model = {"name": "smollm2", "capabilities": ["text-generation"]}
    answer = await stack.call("POST", "/api/tunnel/register", token, {"modelInfo": model})
    await stack.call("DELETE", f"/api/tunnel/{answer['tunnelId']}", token)


async def _count_until_429(change: Callable[[], Awaitable[None]]) -> int:
    for count in range(MOST_CHANGES):
        try:
            await change()
        except ProcessError as error:
            if " was answered 429" not in str(error):
                raise
            return count
    return MOST_CHANGES


async def many_denials(place: Place, size: Size) -> str:
    """Store denials in the database as that many accounts would make them; wait for the relay."""
    before = await place.metric("relay", "byoai_relay_trust_revision")
    revision = await _store(place, size.denials)
    await place.reaches("relay", "byoai_relay_trust_revision", revision, 10 * ANSWER_S)
    held = int(await place.metric("relay", "byoai_relay_denials"))
    await _until_deleted(place)
    is_lost = not held and size.denials <= SENT
    if is_lost or held > HELD or revision <= before:
        raise NotRefused(f"the relay holds {held} denials")
    return f"{size.denials:,} denials stored, {held:,} held by the relay"


async def _until_deleted(place: Place) -> None:
    """Wait until the gateway has deleted those that the rule covers, some at a time."""
    path = place.stack.directory / "gateway.db"
    async with asyncio.timeout(20 * ANSWER_S):
        while await asyncio.to_thread(_is_any_covered, path):  # noqa: ASYNC110 -- no one tells
            await asyncio.sleep(LOOK_S)


def _is_any_covered(path: Path) -> bool:
    with closing(sqlite3.connect(path, timeout=ANSWER_S)) as database:
        return database.execute(_COVERED).fetchone() is not None


async def _store(place: Place, count: int) -> int:
    """Let `hostile.flood` store them; return the last revision."""
    command = (sys.executable, "-m", "hostile.flood")
    path = str(place.stack.directory / "gateway.db")
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    flood = await asyncio.create_subprocess_exec(
        *command, path, str(count), env=environ, stdout=asyncio.subprocess.PIPE
    )
    told, _ = await flood.communicate()
    return int(told)
