"""Many revocations: by one account as fast as it is let, and by a great many accounts at once."""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Final

from byoai_agent.control import GatewayRefused
from demo.processes import ProcessError
from hostile.place import ANSWER_S, NotRefused, Place, Size

MOST_CHANGES: Final = 400
"""Twice what all limits together let one account do in a minute."""
SENT: Final = 100_000
"""Of more than these the oldest are replaced by one rule, which may cover them all."""
HELD: Final = 200_000
"""What a relay holds at most; see docs/protocol.md."""
AGE_S: Final = 600
"""How long ago the first of them was made; tokens live longer."""
ROWS: Final = 20_000
DATABASE_S: Final = 60.0


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
    revision = await asyncio.to_thread(_store, place, size.denials)
    await place.reaches("relay", "byoai_relay_trust_revision", revision, 10 * ANSWER_S)
    held = int(await place.metric("relay", "byoai_relay_denials"))
    is_lost = not held and size.denials <= SENT
    if is_lost or held > HELD or revision <= before:
        raise NotRefused(f"the relay holds {held} denials")
    return f"{size.denials:,} denials stored, {held:,} held by the relay"


def _store(place: Place, count: int) -> int:
    now = int(time.time())
    path = place.stack.directory / "gateway.db"
    revision = 0
    with closing(sqlite3.connect(path, timeout=DATABASE_S)) as database:
        for start in range(0, count, ROWS):
            with database:
                revision = _next_revision(database)
                database.executemany(
                    "INSERT INTO denials (subject, user_id, revision, denied_at, denied_until)"
                    " VALUES (?, ?, ?, ?, ?)",
                    [
                        (
                            f"flood{n:021}/a{n:020}",
                            f"mallory{n // 64}",
                            revision,
                            now - AGE_S + n * AGE_S // count,
                            now + 900,
                        )
                        for n in range(start, min(start + ROWS, count))
                    ],
                )
    return revision


def _next_revision(database: sqlite3.Connection) -> int:
    """Count a change, as the gateway does in each such transaction."""
    database.execute("UPDATE counters SET value = value + 1 WHERE name = 'trust'")
    row = database.execute("SELECT value FROM counters WHERE name = 'trust'").fetchone()
    return int(row[0])
