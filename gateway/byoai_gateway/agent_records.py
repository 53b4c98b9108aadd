"""What the database knows of agents; callers bring the transaction."""

from sqlalchemy import and_, case, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.issuing import Token
from byoai_gateway.model_choice import UNNAMED
from byoai_gateway.refusals import agent_locked, tunnel_revoked
from byoai_gateway.schema import agents, preferences, tunnels
from byoai_shared.enrolment import EnrolRequest
from byoai_shared.identity import AgentIdentity


async def owner_of_usable(connection: AsyncConnection, tunnel_id: str) -> str:
    """Whose tunnel it is.

    Raises:
        Refusal: it is revoked.
    """
    owner: str | None = await connection.scalar(
        select(tunnels.c.user_id).where(
            tunnels.c.tunnel_id == tunnel_id, tunnels.c.revoked_at.is_(None)
        )
    )
    if owner is None:
        raise tunnel_revoked()
    return owner


async def admit(connection: AsyncConnection, identity: AgentIdentity) -> str:
    """Check that an agent belongs to the tunnel it names, and that neither was revoked.

    Returns the owner of the tunnel.

    Raises:
        Refusal: the agent was removed, or the tunnel is revoked.
    """
    owner = await owner_of_usable(connection, identity.tunnel_id)
    found = await connection.scalar(
        select(agents.c.agent_id).where(
            agents.c.agent_id == identity.agent_id,
            agents.c.tunnel_id == identity.tunnel_id,
            agents.c.removed_at.is_(None),
        )
    )
    if found is None:
        raise tunnel_revoked()
    return owner


async def require_unlocked(connection: AsyncConnection, agent_id: str) -> None:
    """Refuse an agent that waits for its owner.

    Raises:
        Refusal: it is locked.
    """
    locked = select(agents.c.locked_at).where(agents.c.agent_id == agent_id)
    if await connection.scalar(locked) is not None:
        raise agent_locked()


async def note_old_key(
    connection: AsyncConnection, agent_id: str, hostname: str, now: float
) -> None:
    """Store that one of an agent's old keys was used, and by which host; once a minute at most."""
    noted = agents.c.old_key_used_at
    await connection.execute(
        update(agents)
        .where(agents.c.agent_id == agent_id, or_(noted.is_(None), noted <= int(now) - 60))
        .values(old_key_used_at=int(now), old_key_host=printable(hostname))
    )


async def insert_agent(
    connection: AsyncConnection,
    identity: AgentIdentity,
    request: EnrolRequest,
    token: Token,
    authentication_version: int,
) -> None:
    """Store an agent that has just joined."""
    await connection.execute(
        insert(agents).values(
            agent_id=identity.agent_id,
            tunnel_id=identity.tunnel_id,
            hostname=printable(request.hostname),
            agent_version=printable(request.agent_version)[:64],
            end_to_end_pem=request.end_to_end_certificate_pem,
            generation=1,
            enrolled_at=token.issued_at,
            token_issued_at=token.issued_at,
            token_expires_at=token.expires_at,
            authentication_version=authentication_version,
            authentication_fetched_at=token.issued_at,
        )
    )


async def models_named(
    connection: AsyncConnection, tunnel_id: str
) -> tuple[str | None, str | None]:
    """Return the model that a tunnel was registered for, and the one that its owner prefers there.

    Owners who chose another tunnel, or an address, prefer nothing here.
    """
    chosen = and_(
        preferences.c.user_id == tunnels.c.user_id,
        preferences.c.self_hosted_url.is_(None),
        or_(preferences.c.tunnel_id.is_(None), preferences.c.tunnel_id == tunnel_id),
    )
    found = await connection.execute(
        select(tunnels.c.model_name, preferences.c.self_hosted_model)
        .select_from(tunnels.outerjoin(preferences, chosen))
        .where(tunnels.c.tunnel_id == tunnel_id)
    )
    row = found.one_or_none()
    if row is None:
        return None, None
    preferred = row.self_hosted_model
    return row.model_name, None if preferred in UNNAMED else preferred


async def note_token(connection: AsyncConnection, agent_id: str, token: Token) -> None:
    """Store that an agent was given a token, and when the last of its tokens expires.

    That may be an earlier one, issued when tokens lived longer.
    """
    last = agents.c.token_expires_at
    await connection.execute(
        update(agents)
        .where(agents.c.agent_id == agent_id)
        .values(
            token_issued_at=token.issued_at,
            token_expires_at=case((last > token.expires_at, last), else_=token.expires_at),
        )
    )


async def note_fetched(
    connection: AsyncConnection, agent_id: str, authentication_version: int, now: float
) -> None:
    """Store that an agent was given an authentication key for the first time."""
    await connection.execute(
        update(agents)
        .where(
            agents.c.agent_id == agent_id,
            agents.c.authentication_version < authentication_version,
        )
        .values(authentication_version=authentication_version, authentication_fetched_at=int(now))
    )


async def note_renewal(
    connection: AsyncConnection, agent_id: str, generation: int, end_to_end_pem: str | None
) -> bool:
    """Store the generation of an agent's link key, and its new end-to-end certificate if any.

    The one before stays pinned: the agent changes over when it has our answer. Answers whether
    another one is pinned now.
    """
    await connection.execute(
        update(agents).where(agents.c.agent_id == agent_id).values(generation=generation)
    )
    if end_to_end_pem is None:
        return False
    pinned = await connection.execute(
        update(agents)
        .where(agents.c.agent_id == agent_id, agents.c.end_to_end_pem != end_to_end_pem)
        .values(previous_end_to_end_pem=agents.c.end_to_end_pem, end_to_end_pem=end_to_end_pem)
    )
    return pinned.rowcount == 1


def printable(text: str) -> str:
    """Return what an agent says of itself, fit for a page, a log and any database."""
    return "".join(character for character in text if character.isprintable())
