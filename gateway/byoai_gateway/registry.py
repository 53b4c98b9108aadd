"""Users' tunnels and their agents: registered, found by their owner, revoked, locked.

Every question a user asks is asked with their id: another user's tunnel is not found, exactly
as one that does not exist. What the data path asks is in `tunnel_lookup`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus

from sqlalchemy import ColumnElement, and_, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.agent_instances import Instance, instances_in_tunnel, overlapping
from byoai_gateway.agent_records import owner_of_usable
from byoai_gateway.audit import Action, Audit
from byoai_gateway.authentication_keys import AuthenticationKeys, KeysInForce
from byoai_gateway.clock import Clock
from byoai_gateway.config import TunnelsSection
from byoai_gateway.database import Database
from byoai_gateway.denials import allow_agent, deny_agent, deny_tunnel, live_denials
from byoai_gateway.join_codes import make_code, withdraw_codes
from byoai_gateway.link_keys import end_certificate, has_newest_key
from byoai_gateway.refusals import Refusal, agent_not_found, tunnel_not_found
from byoai_gateway.schema import agents, link_keys, tunnels
from byoai_gateway.tunnel_rows import (
    NEWEST_FIRST,
    Agent,
    ModelInfo,
    Tunnel,
    agent_from,
    is_owned,
    tunnel_from,
)
from byoai_shared.identity import AgentIdentity, new_tunnel_id
from byoai_shared.logs import get_logger
from byoai_shared.secret import Secret

log = get_logger("gateway")


@dataclass(frozen=True, slots=True)
class Invitation:
    """A join code's secret part, for one more agent."""

    tunnel_id: str
    secret: Secret
    expires_at: int


class Registry:
    """The tunnels in the database."""

    def __init__(
        self,
        database: Database,
        keys: AuthenticationKeys,
        audit: Audit,
        rules: TunnelsSection,
        clock: Clock,
    ) -> None:
        self._database = database
        self._keys = keys
        self._audit = audit
        self._rules = rules
        self._clock = clock

    # -- what users ask for

    async def register(self, user_id: str, model: ModelInfo) -> Invitation:
        """Make a tunnel and the code for its first agent.

        Raises:
            Refusal: the user has as many as they may have.
        """
        now = self._clock()
        tunnel_id = new_tunnel_id()
        async with self._database.writing() as connection:
            owned = await connection.scalar(
                select(func.count()).select_from(tunnels).where(is_owned(user_id))
            )
            if (owned or 0) >= self._rules.max_per_user:
                raise _too_many(f"you have {owned} tunnels, the most there may be", "tunnels")
            await self._check_denials(connection, user_id, now)
            await connection.execute(
                insert(tunnels).values(
                    tunnel_id=tunnel_id,
                    user_id=user_id,
                    model_name=model.name,
                    capabilities=list(model.capabilities),
                    created_at=int(now),
                )
            )
            await self._keys.add_first(connection, tunnel_id, now)
            invitation = await self._invitation(connection, tunnel_id, now)
            await self._audit.note(connection, user_id, Action.TUNNEL_REGISTERED, subject=tunnel_id)
        log.info("tunnel.registered", tunnel_id=tunnel_id, user_id=user_id)
        return invitation

    async def invite(self, user_id: str, tunnel_id: str) -> Invitation:
        """Make a code for another agent of a tunnel.

        Raises:
            Refusal: it is not the user's, or has as many agents as it may have. An agent that is
                locked leaves room: the code may be for its host.
        """
        async with self._database.writing() as connection:
            await _find(connection, user_id, tunnel_id)
            await self.check_room(connection, tunnel_id, is_locked_counted=False)
            await self._audit.note(connection, user_id, Action.TUNNEL_INVITED, subject=tunnel_id)
            return await self._invitation(connection, tunnel_id, self._clock())

    async def tunnels_of(self, user_id: str) -> list[Tunnel]:
        """All tunnels of a user, the newest first."""
        async with self._database.reading() as connection:
            rows = await connection.execute(
                select(tunnels).where(is_owned(user_id)).order_by(*NEWEST_FIRST)
            )
            return [tunnel_from(row) for row in rows]

    async def find(self, user_id: str, tunnel_id: str) -> Tunnel:
        """One tunnel of a user.

        Raises:
            Refusal: it does not exist, or is another user's: the answer is the same.
        """
        async with self._database.reading() as connection:
            return await _find(connection, user_id, tunnel_id)

    async def agents_of(self, tunnel_id: str) -> list[Agent]:
        """The agents of a tunnel, in the order in which they joined."""
        async with self._database.reading() as connection:
            rows = await connection.execute(
                select(agents, link_keys.c.certificate_expires_at)
                .join(
                    link_keys,
                    and_(
                        link_keys.c.agent_id == agents.c.agent_id,
                        link_keys.c.generation == agents.c.generation,
                    ),
                )
                .where(agents.c.tunnel_id == tunnel_id, agents.c.removed_at.is_(None))
                .order_by(agents.c.enrolled_at, agents.c.agent_id)
            )
            found = [agent_from(row) for row in rows]
            runs = await instances_in_tunnel(connection, tunnel_id)
        return [replace(it, runs=self._overlapping(runs.get(it.agent_id, []))) for it in found]

    async def rotate(self, user_id: str, tunnel_id: str) -> KeysInForce:
        """Give a tunnel a new authentication key; the old one lasts until agents know it.

        While one is still being fetched there is no other, and nothing is written down.

        Raises:
            Refusal: the tunnel is not the user's.
        """
        now = self._clock()
        async with self._database.writing() as connection:
            await _find(connection, user_id, tunnel_id)
            before = await self._keys.settle(connection, tunnel_id, now)
            force = await self._keys.rotate(connection, tunnel_id, now)
            if force.newest != before.newest:
                await self._audit.note(
                    connection, user_id, Action.TUNNEL_KEY_ROTATED, subject=tunnel_id
                )
        log.info("authentication_key.rotating", tunnel_id=tunnel_id, agents=force.waiting_for)
        return force

    async def revoke(
        self, user_id: str, tunnel_id: str, action: Action = Action.TUNNEL_REVOKED
    ) -> None:
        """End a tunnel for good: its keys are forgotten and relays are told to cut it.

        Raises:
            Refusal: the tunnel is not the user's.
        """
        now = self._clock()
        async with self._database.writing() as connection:
            await _find(connection, user_id, tunnel_id)
            await connection.execute(
                update(tunnels).where(tunnels.c.tunnel_id == tunnel_id).values(revoked_at=int(now))
            )
            await withdraw_codes(connection, tunnel_id)
            await self._keys.remove_all(connection, tunnel_id)
            await self._audit.note(connection, user_id, action, subject=tunnel_id)
            await deny_tunnel(connection, user_id, tunnel_id, now)
        log.info("tunnel.revoked", tunnel_id=tunnel_id, user_id=user_id)

    async def remove_agent(
        self, user_id: str, tunnel_id: str, agent_id: str, action: Action = Action.AGENT_REMOVED
    ) -> None:
        """End one agent of a tunnel; relays are told to refuse it.

        Raises:
            Refusal: the tunnel is not the user's, or has no such agent.
        """
        now = self._clock()
        async with self._database.writing() as connection:
            await _find(connection, user_id, tunnel_id)
            await self._end_agent(connection, user_id, AgentIdentity(tunnel_id, agent_id), now)
            await self._audit.note(connection, user_id, action, subject=agent_id)
        log.info("agent.removed", tunnel_id=tunnel_id, agent_id=agent_id, user_id=user_id)

    async def unlock_agent(self, user_id: str, tunnel_id: str, agent_id: str) -> None:
        """Let an agent go on whose old key was used; it does once it has renewed its certificate.

        The old keys that it has had stay refused, and lock it no more.

        Raises:
            Refusal: the tunnel is not the user's, or has no such agent.
        """
        now = self._clock()
        async with self._database.writing() as connection:
            await _find(connection, user_id, tunnel_id)
            unlocked = await connection.execute(
                update(agents)
                .where(_is_agent(AgentIdentity(tunnel_id, agent_id)))
                .values(
                    locked_at=None,
                    old_key_used_at=None,
                    old_key_host=None,
                    cleared_generation=agents.c.generation,
                )
            )
            if unlocked.rowcount != 1:
                raise agent_not_found()
            await allow_agent(connection, tunnel_id, agent_id, now)
            await self._audit.note(connection, user_id, Action.AGENT_UNLOCKED, subject=agent_id)
        log.info("agent.unlocked", tunnel_id=tunnel_id, agent_id=agent_id, user_id=user_id)

    # -- what enrolment needs; callers bring the transaction

    @property
    def instance_window_s(self) -> float:
        """How long after its last call a run of an agent's program may still be under way."""
        return self._rules.token_lifetime_s + 60

    async def check_room(
        self, connection: AsyncConnection, tunnel_id: str, *, is_locked_counted: bool = True
    ) -> None:
        """Refuse one agent too many."""
        counted = [agents.c.tunnel_id == tunnel_id, agents.c.removed_at.is_(None)]
        if not is_locked_counted:
            counted.append(agents.c.locked_at.is_(None))
        joined = await connection.scalar(select(func.count()).select_from(agents).where(*counted))
        if (joined or 0) >= self._rules.max_agents:
            raise _too_many(f"the tunnel has {joined} agents, the most there may be", "agents")
        user_id = await connection.scalar(
            select(tunnels.c.user_id).where(tunnels.c.tunnel_id == tunnel_id)
        )
        await self._check_denials(connection, user_id or "", self._clock())

    async def lock_agent(
        self, connection: AsyncConnection, identity: AgentIdentity, generation: int
    ) -> None:
        """Stop an agent until its owner acts: a second host used its key of that generation.

        Which of the two is the right one is not known here, so its newest key must wait as well.
        A key that the owner has heard of before does not lock the agent again.
        """
        now = self._clock()
        cleared = agents.c.cleared_generation
        locked = await connection.execute(
            update(agents)
            .where(
                _is_agent(identity),
                agents.c.locked_at.is_(None),
                or_(cleared.is_(None), cleared <= generation),
            )
            .values(locked_at=int(now))
        )
        if locked.rowcount != 1:
            return
        owner = await owner_of_usable(connection, identity.tunnel_id)
        await deny_agent(connection, owner, identity.tunnel_id, identity.agent_id, now)
        await end_certificate(connection, identity.agent_id, now)
        await self._audit.note(connection, owner, Action.AGENT_LOCKED, subject=identity.agent_id)
        log.error(
            "alert.agent_locked",
            tunnel_id=identity.tunnel_id,
            agent_id=identity.agent_id,
            next="the agent is cut off until its owner unlocks it or joins its host again",
        )

    async def replace_locked(
        self, connection: AsyncConnection, owner: str, identity: AgentIdentity, key_id: str
    ) -> bool:
        """End a locked agent because the host with its newest key joins again; returns whether.

        A host with an older key, such as the one that locked the agent, must not end it: its owner
        may want to unlock it for the host that has the newest one.
        """
        locked_at = await connection.scalar(select(agents.c.locked_at).where(_is_agent(identity)))
        if locked_at is None or not await has_newest_key(connection, identity.agent_id, key_id):
            return False
        await self._end_agent(connection, owner, identity, self._clock())
        await self._audit.note(connection, owner, Action.AGENT_REPLACED, subject=identity.agent_id)
        return True

    # -- within

    def _overlapping(self, runs: Sequence[Instance]) -> tuple[Instance, ...]:
        return overlapping(runs, self._clock(), self.instance_window_s)

    async def _end_agent(
        self, connection: AsyncConnection, owner: str, identity: AgentIdentity, now: float
    ) -> None:
        removed = await connection.execute(
            update(agents).where(_is_agent(identity)).values(removed_at=int(now))
        )
        if removed.rowcount != 1:
            raise agent_not_found()
        await deny_agent(connection, owner, identity.tunnel_id, identity.agent_id, now)

    async def _invitation(
        self, connection: AsyncConnection, tunnel_id: str, now: float
    ) -> Invitation:
        expires_at = int(now + self._rules.join_code_lifetime_s)
        secret = await make_code(connection, tunnel_id, expires_at)
        return Invitation(tunnel_id, secret, expires_at)

    async def _check_denials(self, connection: AsyncConnection, user_id: str, now: float) -> None:
        """Refuse an addition to a user of whom relays already have much to refuse.

        What is revoked must have been added before, so this bounds the denials of each user, and
        revoking is never refused.
        """
        count, wait_s = await live_denials(connection, user_id, now)
        if count >= self._rules.max_revoked_per_user:
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too_many_revocations",
                f"{count} of your tunnels and agents were removed so recently that relays still "
                f"have to refuse their tokens; add another one in {wait_s} s",
                retry_after_s=wait_s,
            )


def _is_agent(identity: AgentIdentity) -> ColumnElement[bool]:
    """The condition that an agent is that one of that tunnel, and was not removed."""
    return and_(
        agents.c.agent_id == identity.agent_id,
        agents.c.tunnel_id == identity.tunnel_id,
        agents.c.removed_at.is_(None),
    )


async def _find(connection: AsyncConnection, user_id: str, tunnel_id: str) -> Tunnel:
    row = (
        await connection.execute(
            select(tunnels).where(is_owned(user_id), tunnels.c.tunnel_id == tunnel_id)
        )
    ).one_or_none()
    if row is None:
        raise tunnel_not_found()
    return tunnel_from(row)


def _too_many(message: str, what: str) -> Refusal:
    return Refusal(HTTPStatus.CONFLICT, f"too_many_{what}", f"{message}; remove one first")
