"""Denials: the revoked tunnels and agents that relays must still refuse, by name.

A tunnel or an agent is denied from its revocation until the last token that it was given has
expired; one that never had a token is not denied at all. A tunnel's denial covers its agents'.
Renewing certificates and fetching tokens makes no denial. Callers bring the transaction.
"""

from math import ceil
from typing import Any, Final

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.revision import counter, set_counter, trust_changed
from byoai_gateway.schema import agents, denials
from byoai_shared.protocol.trust import agent_subject
from byoai_shared.tokens import LEEWAY_S

TOLERATED_CLOCKS_S: Final = 300
"""How far a relay's clock may be behind: so much longer than its tokens a tunnel is denied."""
_EXPIRED_BEFORE: Final = "denials_expired"
_ISSUED_AFTER: Final = "denials_cutoff"


async def deny_tunnel(
    connection: AsyncConnection, user_id: str, tunnel_id: str, now: float
) -> None:
    """Make relays refuse a tunnel and end its links."""
    tokens = agents.c.tunnel_id == tunnel_id
    revision = await _deny(connection, user_id, tunnel_id, tokens, now)
    if revision is not None:
        # By their names, not by a pattern: that would read all denials of all users.
        of_agents = select(agents.c.tunnel_id + agent_subject("", "") + agents.c.agent_id).where(
            agents.c.tunnel_id == tunnel_id
        )
        await connection.execute(
            update(denials)
            .where(denials.c.subject.in_(of_agents), denials.c.denied_until > 0)
            .values(denied_until=0, revision=revision)
        )


async def deny_agent(
    connection: AsyncConnection, user_id: str, tunnel_id: str, agent_id: str, now: float
) -> None:
    """Make relays refuse one agent of a tunnel and end its links."""
    subject = agent_subject(tunnel_id, agent_id)
    await _deny(connection, user_id, subject, agents.c.agent_id == agent_id, now)


async def allow_agent(
    connection: AsyncConnection, tunnel_id: str, agent_id: str, now: float
) -> None:
    """Let relays accept one agent of a tunnel again."""
    denied = (denials.c.subject == agent_subject(tunnel_id, agent_id)) & (
        denials.c.denied_until > 0
    )
    if await connection.scalar(select(func.count()).select_from(denials).where(denied)):
        revision = await trust_changed(connection, now)
        await connection.execute(
            update(denials).where(denied).values(denied_until=0, revision=revision)
        )


async def live_denials(connection: AsyncConnection, user_id: str, now: float) -> tuple[int, int]:
    """Count a user's denials that are in force; and seconds until the first of them ends."""
    count, first = (
        await connection.execute(
            select(func.count(), func.min(denials.c.denied_until)).where(
                denials.c.user_id == user_id, denials.c.denied_until >= int(now)
            )
        )
    ).one()
    return count, max(1, ceil((first or now) - now))


async def tidy_denials(
    connection: AsyncConnection, limit: int, now: float, *, known: int, known_revision: int
) -> None:
    """Forget denials that ended, and the oldest where there are more than `limit`.

    The oldest are replaced by one rule that covers them: relays refuse every token that was
    issued before the newest of them. Agents that were not revoked fetch another one.
    The caller knows `known` denials, as of `known_revision`: only those since then are counted,
    as counting all would read them all each time.
    """
    ended = await connection.execute(delete(denials).where(denials.c.denied_until < int(now)))
    if ended.rowcount:
        await _raise_counter(connection, _EXPIRED_BEFORE, int(now))
    newest_of_the_rest = None
    if known + await _changed_since(connection, known_revision) > limit:
        newest_of_the_rest = await _newest_beyond(connection, limit)
    if newest_of_the_rest is not None:
        await connection.execute(delete(denials).where(denials.c.denied_at <= newest_of_the_rest))
        await _raise_counter(connection, _ISSUED_AFTER, newest_of_the_rest)
    if ended.rowcount or newest_of_the_rest is not None:
        await trust_changed(connection, now)


async def cutoffs(connection: AsyncConnection) -> tuple[int, int]:
    """Return when denials that are forgotten ended, and until when issued tokens are refused."""
    return await counter(connection, _EXPIRED_BEFORE), await counter(connection, _ISSUED_AFTER)


async def _changed_since(connection: AsyncConnection, revision: int) -> int:
    """How many denials were made or changed after a revision."""
    query = select(func.count()).select_from(denials).where(denials.c.revision > revision)
    return await connection.scalar(query) or 0


async def _newest_beyond(connection: AsyncConnection, limit: int) -> int | None:
    """When the newest denial was made that does not belong to the `limit` newest ones."""
    newest: int | None = await connection.scalar(
        select(denials.c.denied_at).order_by(denials.c.denied_at.desc()).offset(limit).limit(1)
    )
    return newest


async def _raise_counter(connection: AsyncConnection, name: str, value: int) -> None:
    """Set a counter unless it is higher: gateways' clocks differ."""
    await set_counter(connection, name, max(value, await counter(connection, name)))


async def _deny(
    connection: AsyncConnection, user_id: str, subject: str, tokens: Any, now: float
) -> int | None:
    """Store a denial and return its revision; None if no token is left that it could meet."""
    expires_at = await connection.scalar(select(func.max(agents.c.token_expires_at)).where(tokens))
    denied_until = (expires_at or 0) + LEEWAY_S + TOLERATED_CLOCKS_S
    if denied_until < now:
        return None
    revision = await trust_changed(connection, now)
    await connection.execute(delete(denials).where(denials.c.subject == subject))
    await connection.execute(
        insert(denials).values(
            subject=subject,
            user_id=user_id,
            revision=revision,
            denied_at=int(now),
            denied_until=denied_until,
        )
    )
    return revision
