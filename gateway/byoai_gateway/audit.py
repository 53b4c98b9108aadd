"""Who changed what and when: one entry for each change to settings, keys and tunnels.

An entry stands in the transaction of the change itself: there is neither without the other. It
names fields and never holds their values.
"""

from collections.abc import Iterable
from enum import StrEnum

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
    TUNNEL_LOCKED = "tunnel.locked"
    AGENT_JOINED = "agent.joined"
    AGENT_REMOVED = "agent.removed"


class Audit:
    """Writes the entries; callers bring the transaction."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def note(
        self,
        connection: AsyncConnection,
        user_id: str,
        action: Action,
        *,
        subject: str | None = None,
        fields: Iterable[str] = (),
    ) -> None:
        """Write down what the user does in this transaction, and to what."""
        await connection.execute(
            insert(audit_log).values(
                at=int(self._clock()),
                user_id=user_id,
                action=action.value,
                subject=subject,
                fields=sorted(fields),
                request_id=current_request_id(),
            )
        )
