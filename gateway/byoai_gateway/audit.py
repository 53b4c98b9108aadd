"""Who changed what and when: one entry for each change to settings, keys and tunnels.

An entry stands in the transaction of the change itself: there is neither without the other. (What
changes a file, as the vault's keys do, is written down right after.) It names fields and never
holds their values.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.clock import Clock
from byoai_gateway.request_ids import current_request_id
from byoai_gateway.schema import audit_log


class Action(StrEnum):
    """What was done."""

    PREFERENCES_SAVED = "preferences.saved"
    TUNNEL_REGISTERED = "tunnel.registered"
    TUNNEL_INVITED = "tunnel.invited"
    TUNNEL_KEY_ROTATED = "tunnel.key_rotated"
    TUNNEL_REVOKED = "tunnel.revoked"
    TUNNEL_REVOKED_BY_OPERATOR = "tunnel.revoked_by_operator"
    AGENT_JOINED = "agent.joined"
    AGENT_CERTIFICATE_CHANGED = "agent.certificate_changed"
    """Its end-to-end certificate: whom the gateway trusts as this agent."""
    AGENT_REMOVED = "agent.removed"
    AGENT_REMOVED_BY_OPERATOR = "agent.removed_by_operator"
    AGENT_LOCKED = "agent.locked"
    """One of its old keys was used again."""
    AGENT_UNLOCKED = "agent.unlocked"
    AGENT_REPLACED = "agent.replaced"
    """A join code was used on the host of an agent that was locked."""
    SIGNING_KEY_DROPPED = "signing_key.dropped"
    SERVICE_REVOKED = "service.revoked"
    VAULT_KEY_ADDED = "vault.key_added"
    VAULT_KEY_CHANGED = "vault.key_changed"
    """Another one seals from now on."""
    VAULT_KEY_FORGOTTEN = "vault.key_forgotten"


class Actor(StrEnum):
    """Who did it."""

    USER = "user"
    AGENT = "agent"
    GATEWAY = "gateway"
    OPERATOR = "operator"


_ACTORS: Final[Mapping[Action, Actor]] = {
    Action.AGENT_LOCKED: Actor.GATEWAY,
    Action.AGENT_JOINED: Actor.AGENT,
    Action.AGENT_REPLACED: Actor.AGENT,
    Action.AGENT_CERTIFICATE_CHANGED: Actor.AGENT,
    Action.TUNNEL_REVOKED_BY_OPERATOR: Actor.OPERATOR,
    Action.AGENT_REMOVED_BY_OPERATOR: Actor.OPERATOR,
    Action.SIGNING_KEY_DROPPED: Actor.OPERATOR,
    Action.SERVICE_REVOKED: Actor.OPERATOR,
    Action.VAULT_KEY_ADDED: Actor.OPERATOR,
    Action.VAULT_KEY_CHANGED: Actor.OPERATOR,
    Action.VAULT_KEY_FORGOTTEN: Actor.OPERATOR,
}
"""Everything else is done by users."""


class Audit:
    """Writes the entries; callers bring the transaction."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def note(
        self,
        connection: AsyncConnection,
        user_id: str | None,
        action: Action,
        *,
        subject: str | None = None,
        fields: Iterable[str] = (),
        emptied: Iterable[str] = (),
    ) -> None:
        """Write down what is done in this transaction, to what, and whose it is.

        `user_id` is None for what is nobody's own. `emptied` are those of the fields that hold
        nothing from now on; the others were set.
        """
        await connection.execute(
            insert(audit_log).values(
                at=int(self._clock()),
                actor=_ACTORS.get(action, Actor.USER).value,
                user_id=user_id,
                action=action.value,
                subject=subject,
                fields=sorted(fields),
                emptied=sorted(emptied),
                request_id=current_request_id(),
            )
        )
