"""Where a user's requests go, remembered for a moment: the registry is not asked each time.

What is remembered is at most `FRESH_S` old when it is used first, and looked up again by one
request while the others go on with what is known. A revoked tunnel does not wait for this: its
relays cut it at once.
"""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

from byoai_gateway.presence import PresenceMap
from byoai_gateway.refusals import Refusal
from byoai_gateway.registry import Registry
from byoai_gateway.self_hosted import Route

FRESH_S: Final = 2.0
MAX_REMEMBERED: Final = 10_000

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class _Remembered(Generic[_Value]):
    __slots__ = ("is_being_renewed", "looked_up_at", "value")

    def __init__(self, value: _Value, looked_up_at: float) -> None:
        self.value = value
        self.looked_up_at = looked_up_at
        self.is_being_renewed = False


class Memory(Generic[_Key, _Value]):
    """Answers of a slow question by key: bounded in number and in age."""

    def __init__(
        self,
        look_up: Callable[[_Key], Awaitable[_Value]],
        *,
        fresh_s: float = FRESH_S,
        size: int = MAX_REMEMBERED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look_up = look_up
        self._fresh_s = fresh_s
        self._size = size
        self._clock = clock
        self._known: OrderedDict[_Key, _Remembered[_Value]] = OrderedDict()

    async def get(self, key: _Key) -> _Value:
        """Return the answer; what `look_up` raises is raised and not remembered."""
        known = self._known.get(key)
        if known is None:
            return await self._ask(key)
        is_fresh = self._clock() - known.looked_up_at <= self._fresh_s
        if is_fresh or known.is_being_renewed:
            return known.value
        known.is_being_renewed = True
        try:
            return await self._ask(key)
        except BaseException:
            self._known.pop(key, None)
            raise

    def forget(self, key: _Key) -> None:
        """Ask again the next time."""
        self._known.pop(key, None)

    async def _ask(self, key: _Key) -> _Value:
        value = await self._look_up(key)
        self._known[key] = _Remembered(value, self._clock())
        self._known.move_to_end(key)
        if len(self._known) > self._size:
            self._known.popitem(last=False)
        return value


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
