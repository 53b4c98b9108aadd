"""Where a user's requests go, remembered for a moment: the registry is not asked each time.

What is remembered is at most `FRESH_S` old when it is used first, and looked up again by one
request while the others go on with what is known. A revoked tunnel does not wait for this: its
relays cut it at once. That there is no tunnel is not remembered: who registers one may use it
with their next request, and how often somebody may ask for one that is not there is limited per
user before.
"""

from byoai_gateway.absence import Absence, all_locked, never_joined
from byoai_gateway.database import DatabaseUnavailable
from byoai_gateway.memory import STALE_S, Memory
from byoai_gateway.presence import PresenceMap
from byoai_gateway.providers.tunnel import Route
from byoai_gateway.refusals import Refusal
from byoai_gateway.tunnel_lookup import TunnelLookup
from byoai_gateway.vault import KeysUnavailable


class RegistryRoutes:
    """Routes by user, from the registry and from what the relays say."""

    def __init__(
        self, lookup: TunnelLookup, presence: PresenceMap, *, stale_s: float = STALE_S
    ) -> None:
        self._lookup = lookup
        self._presence = presence
        self._routes: Memory[tuple[str, str | None], Route | None] = Memory(
            self._find,
            lookup.availability,
            stale_s=stale_s,
            is_kept=lambda route: route is not None,
        )
        self._pins: Memory[str, tuple[bytes, ...]] = Memory(
            lookup.pinned_certificates, lookup.availability, stale_s=stale_s
        )

    async def route(self, user_id: str, tunnel_id: str | None) -> Route | None:
        """The user's tunnel of that id, or the one to use when none is named."""
        return await self._routes.get((user_id, tunnel_id))

    async def pins(self, tunnel_id: str) -> tuple[bytes, ...]:
        """The certificates (PEM) that count as this tunnel's agents."""
        return await self._pins.get(tunnel_id)

    def forget_pins(self, tunnel_id: str) -> None:
        """Look the certificates up again: one that is not among them has just answered."""
        self._pins.outdate(tunnel_id)

    async def close(self) -> None:
        """End what is being looked up."""
        await self._routes.close()
        await self._pins.close()

    async def why_none(self, tunnel_id: str) -> Absence:
        """Why no certificate counts as this tunnel's agents."""
        return all_locked() if await self._lookup.has_agents(tunnel_id) else never_joined()

    async def _find(self, key: tuple[str, str | None]) -> Route | None:
        """Take the tunnel that is named; or the newest that is online, or else the newest."""
        user_id, named = key
        usable = [
            tunnel
            for tunnel in await self._lookup.usable_of(user_id)
            if named in {None, tunnel.tunnel_id}
        ]
        online = [it for it in usable if self._presence.relays_of(it.tunnel_id)]
        tunnel = next(iter(online or usable), None)
        if tunnel is None:
            return None
        try:
            key_now = await self._lookup.authentication_key(tunnel.tunnel_id)
        except (DatabaseUnavailable, KeysUnavailable):
            raise
        except Refusal:  # revoked in between
            return None
        # Not needed while a connection is kept; looked up so that they are known, and as young as
        # the route, when the database is away and the agent connects anew.
        await self._pins.get(tunnel.tunnel_id)
        return Route(tunnel.tunnel_id, key_now, tunnel.model.name, tunnel.model.capabilities)
