"""Denials: the revoked tunnels and agents that relays must still refuse, by name.

A tunnel or an agent is denied from its revocation until the last token that it was given has
expired; one that never had a token is not denied at all. A tunnel's denial covers its agents'.
Renewing certificates and fetching tokens makes no denial. Callers of what makes or counts them
bring the transaction; what ends them, which may be very many at once, makes its own, short ones.
"""

from collections.abc import Callable
from math import ceil
from typing import Any, Final

from sqlalchemy import and_, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.database import Database
from byoai_gateway.deletion import delete_older
from byoai_gateway.revision import counter, set_counter, trust_changed
from byoai_gateway.schema import agents, denials
from byoai_shared.protocol.trust import agent_subject
from byoai_shared.tokens import LEEWAY_S

TOLERATED_CLOCKS_S: Final = 300
"""How far a relay's clock may be behind: so much longer than its tokens a tunnel is denied."""
_LONGEST_DENIAL_S: Final = 7_200
"""More than any denial lasts: a token's life, and what is tolerated."""
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
    denied = and_(
        denials.c.subject == agent_subject(tunnel_id, agent_id), denials.c.denied_until > 0
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


async def is_excess(
    connection: AsyncConnection, most: int, *, known: int, known_revision: int
) -> bool:
    """Whether there are more than `most` denials that no rule covers.

    The caller knows `known` of them, as of `known_revision`: only those since then are counted,
    as counting all would read them all each time; and no more are counted than the question needs.
    """
    if known > most:
        return True
    _, issued_after = await cutoffs(connection)
    one_too_many = (
        select(denials.c.subject)
        .where(denials.c.revision > known_revision, denials.c.denied_at > issued_after)
        .offset(most - known)
        .limit(1)
    )
    return await connection.scalar(one_too_many) is not None


async def replace_oldest(database: Database, limit: int, now: float) -> None:
    """Replace the oldest denials, where there are more than `limit`, by one rule that covers them.

    Relays refuse every token that was issued before the newest of them. Agents that were not
    revoked fetch another one.
    """
    async with database.reading() as connection:
        _, issued_after = await cutoffs(connection)
        newest = await _newest_beyond(connection, limit, issued_after)
    if newest is not None:
        async with database.writing() as connection:
            await _raise_counter(connection, _ISSUED_AFTER, newest)
            await trust_changed(connection, now)


async def end_denials(database: Database, now: float) -> None:
    """Tell everyone that the denials that ended are over; they are deleted later."""
    async with database.reading() as connection:
        expired_before, _ = await cutoffs(connection)
        # Those that ended earlier were told; withdrawn ones (0) need no such rule.
        is_news = denials.c.denied_until.between(max(1, expired_before), int(now) - 1)
        if await connection.scalar(select(denials.c.subject).where(is_news).limit(1)) is None:
            return
    async with database.writing() as connection:
        await _raise_counter(connection, _EXPIRED_BEFORE, int(now))
        await trust_changed(connection, now)


async def delete_over(database: Database, is_over: Callable[[], bool] = lambda: False) -> None:
    """Delete the denials that are over, some at a time; `is_over` is asked now and then, to stop.

    It changes nothing of the trust. One that was withdrawn stays until it would have ended by
    itself: a gateway that has not read that it was withdrawn would go on denying it.
    """
    async with database.reading() as connection:
        expired_before, issued_after = await cutoffs(connection)
    has_ended = or_(
        denials.c.denied_until > 0, denials.c.denied_at < expired_before - _LONGEST_DENIAL_S
    )
    await delete_older(database, denials.c.denied_until, expired_before, is_over, has_ended)
    await delete_older(database, denials.c.denied_at, issued_after + 1, is_over)


async def cutoffs(connection: AsyncConnection) -> tuple[int, int]:
    """Return when denials that are forgotten ended, and until when issued tokens are refused."""
    return await counter(connection, _EXPIRED_BEFORE), await counter(connection, _ISSUED_AFTER)


async def _newest_beyond(connection: AsyncConnection, limit: int, after: int) -> int | None:
    """When the newest denial was made that does not belong to the `limit` newest ones."""
    newest: int | None = await connection.scalar(
        select(denials.c.denied_at)
        .where(denials.c.denied_at > after)
        .order_by(denials.c.denied_at.desc())
        .offset(limit)
        .limit(1)
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
