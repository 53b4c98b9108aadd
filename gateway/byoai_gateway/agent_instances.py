"""The runs of an agent's program, by which two hosts with the same state are told apart.

A run has a random id from its start to its end, and calls the gateway with it. A restart ends one
run before the next begins; of two hosts that run with the same state each calls again after the
other has begun. So runs that overlap are two hosts. Callers bring the transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.agent_records import printable
from byoai_gateway.schema import agent_instances, agents

INSTANCES_REMEMBERED: Final = 4
"""Per agent, the last seen: any number of restarts, or of copies, keeps no more."""
SKEW_S: Final = 2
"""What the clocks of two gateways may differ by: runs that overlap by no more are a restart."""
_INSTANCE_CHARACTERS: Final = 64


@dataclass(frozen=True, slots=True)
class Instance:
    """One run of an agent's program, as far as its calls show it. Unix seconds."""

    instance: str
    hostname: str
    first_seen_at: int
    last_seen_at: int


def overlapping(instances: Sequence[Instance], now: float, window_s: float) -> tuple[Instance, ...]:
    """Return the runs that are under way at the same time, the last seen first; else nothing.

    A run that has not called for `window_s` is over.
    """
    living = sorted(
        (it for it in instances if it.last_seen_at > now - window_s),
        key=lambda it: it.last_seen_at,
        reverse=True,
    )
    found = tuple(
        one for one in living if any(_overlap(one, other) for other in living if other is not one)
    )
    return found if len(found) > 1 else ()


def shared_since(instances: Sequence[Instance]) -> int:
    """Return when the second of several runs began."""
    return sorted(it.first_seen_at for it in instances)[1]


def _overlap(one: Instance, other: Instance) -> bool:
    earlier, later = sorted((one, other), key=lambda it: it.first_seen_at)
    return earlier.last_seen_at > later.first_seen_at + SKEW_S


async def note_instance(
    connection: AsyncConnection, agent_id: str, instance: str, hostname: str, now: float
) -> None:
    """Store that a run of the agent's program has called; an older agent names none."""
    table = agent_instances
    name = printable(instance)[:_INSTANCE_CHARACTERS]
    if not name:
        return
    seen = await connection.execute(
        update(table)
        .where(table.c.agent_id == agent_id, table.c.instance == name)
        .values(last_seen_at=int(now))
    )
    if seen.rowcount:
        return
    await connection.execute(
        insert(table).values(
            agent_id=agent_id,
            instance=name,
            hostname=printable(hostname),
            first_seen_at=int(now),
            last_seen_at=int(now),
        )
    )
    newest = (
        select(table.c.instance)
        .where(table.c.agent_id == agent_id)
        .order_by(table.c.last_seen_at.desc(), table.c.first_seen_at.desc())
        .limit(INSTANCES_REMEMBERED)
    )
    await connection.execute(
        delete(table).where(table.c.agent_id == agent_id, table.c.instance.not_in(newest))
    )


async def instances_of(connection: AsyncConnection, agent_id: str) -> list[Instance]:
    """Return the runs of an agent's program that are remembered, the last seen first."""
    table = agent_instances
    rows = await connection.execute(
        select(table)
        .where(table.c.agent_id == agent_id)
        .order_by(table.c.last_seen_at.desc(), table.c.first_seen_at.desc())
    )
    return [_instance(row) for row in rows]


async def instances_in_tunnel(
    connection: AsyncConnection, tunnel_id: str
) -> dict[str, list[Instance]]:
    """Return the runs of the programs of a tunnel's agents, by agent."""
    table = agent_instances
    rows = await connection.execute(
        select(table)
        .join(agents, agents.c.agent_id == table.c.agent_id)
        .where(agents.c.tunnel_id == tunnel_id, agents.c.removed_at.is_(None))
    )
    found: dict[str, list[Instance]] = {}
    for row in rows:
        found.setdefault(row.agent_id, []).append(_instance(row))
    return found


def _instance(row: Row[Any]) -> Instance:
    return Instance(row.instance, row.hostname, row.first_seen_at, row.last_seen_at)
