"""Where a user's requests go, remembered for a moment: the registry is not asked each time.

What is remembered is at most `FRESH_S` old when it is used first, and looked up again by one
request while the others go on with what is known. A revoked tunnel does not wait for this: its
relays cut it at once.
"""

from byoai_gateway.memory import Memory
from byoai_gateway.presence import PresenceMap
from byoai_gateway.refusals import Refusal
from byoai_gateway.registry import Registry
from byoai_gateway.self_hosted import Route


class RegistryRoutes:
    """Routes by user, from the registry and from what the relays say."""

    def __init__(self, registry: Registry, presence: PresenceMap) -> None:
        self._registry = registry
        self._presence = presence
        self._routes: Memory[tuple[str, str | None], Route | None] = Memory(self._find)
        self._pins: Memory[str, tuple[bytes, ...]] = Memory(registry.pinned_certificates)

    async def route(self, user_id: str, tunnel_id: str | None) -> Route | None:
        """The user's tunnel of that id, or the one to use when none is named."""
        return await self._routes.get((user_id, tunnel_id))

    async def pins(self, tunnel_id: str) -> tuple[bytes, ...]:
        """The certificates (PEM) that count as this tunnel's agents."""
        return await self._pins.get(tunnel_id)

    def forget_pins(self, tunnel_id: str) -> None:
        """Look the certificates up again: one that is not among them has just answered."""
        self._pins.forget(tunnel_id)

    async def _find(self, key: tuple[str, str | None]) -> Route | None:
        user_id, named = key
        tunnel_id = await (self._choose(user_id) if named is None else self._own(user_id, named))
        if tunnel_id is None:
            return None
        try:
            return Route(tunnel_id, await self._registry.authentication_key(tunnel_id))
        except Refusal:  # revoked in between
            return None

    async def _own(self, user_id: str, tunnel_id: str) -> str | None:
        return tunnel_id if await self._registry.owner_of(tunnel_id) == user_id else None

    async def _choose(self, user_id: str) -> str | None:
        """Take the newest tunnel that is online, or else the newest."""
        usable = [
            tunnel.tunnel_id
            for tunnel in await self._registry.tunnels_of(user_id)
            if not tunnel.is_locked
        ]
        online = [tunnel_id for tunnel_id in usable if self._presence.relays_of(tunnel_id)]
        return next(iter(online or usable), None)
