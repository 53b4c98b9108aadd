"""How often somebody did something within a minute, counted here or by a store for all gateways.

The minute begins with the first time. In memory there is a small counter of our own: that of
`limits` starts a task that looks at every key each time it counts, which one gateway with many
users cannot afford. With a store, `limits` counts in Redis or Valkey, in one question.

The same store remembers, for all gateways, what may be used once.

A store that does not answer is an error of ours, never a verdict on the one who asks.
"""

import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from math import ceil
from typing import Any, Final
from urllib.parse import urlsplit

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import ConnectKwargs, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from byoai_gateway.patient_timeout import patient_timeout
from byoai_shared.errors import ByoaiError, ConfigError
from byoai_shared.secret import Secret

WINDOW_S: Final = 60.0
QUESTION_S: Final = 0.5
"""Longest wait for the store, connecting and repeating included, while this process is not busy."""
MAX_CONNECTIONS: Final = 32

_PREFIX: Final = "byoai"
"""What the names of all our keys begin with."""
_SCHEMES: Final = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",  # the same protocol, so the same client
    "valkeys": "rediss",
}


class StoreAwayError(ByoaiError):
    """The store did not answer, not in time, or `is_refused`: it does not admit us."""

    def __init__(self, reason: str, *, is_refused: bool = False) -> None:
        super().__init__(reason)
        self.is_refused = is_refused


class MemoryWindows:
    """Counted by this gateway alone. What is over is forgotten without a search for it."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        # User to [began at, count]. No window is older than the two halves together.
        self._young: dict[str, list[float]] = {}
        self._old: dict[str, list[float]] = {}
        self._young_since = clock()

    async def hit(self, user_id: str) -> float | None:
        """Count one; if it is one too many, answer how long (s) until the next minute."""
        now = self._clock()
        if now - self._young_since >= WINDOW_S:
            self._grow_old(now)
        window = self._young.get(user_id) or self._old.get(user_id)
        if window is None or now - window[0] >= WINDOW_S:
            self._young[user_id] = [now, 1]
            return None
        if window[1] >= self._per_minute:
            return window[0] + WINDOW_S - now
        window[1] += 1
        return None

    def __len__(self) -> int:
        """How many windows are remembered."""
        return len(self._young) + len(self._old)

    def _grow_old(self, now: float) -> None:
        is_all_over = now - self._young_since >= 2 * WINDOW_S
        self._old = {} if is_all_over else self._young
        self._young = {}
        self._young_since = now


class Store:
    """Redis or Valkey, and the connections to it; close it with `close`."""

    def __init__(self, address: Secret, question_s: float | None = None) -> None:
        question_s = QUESTION_S if question_s is None else question_s
        self._question_s = question_s
        url = _parsed(address)
        self._pool = BlockingConnectionPool(
            max_connections=MAX_CONNECTIONS,
            # The limit for the whole question covers these. The client's own limits would count the
            # time for which this process was busy against the store.
            timeout=None,
            socket_connect_timeout=None,
            # With a limit for its writes the client uses asyncio.wait_for, which on Python 3.11
            # may swallow a cancellation: a question that outlasts its time, a handler that outlives
            # its client.
            socket_timeout=None,
            # One more try: a connection that lay idle may have been closed by the store.
            retry=Retry(NoBackoff(), 1),
            **url,
        )
        self._client = Redis(connection_pool=self._pool)
        options: dict[str, Any] = {"connection_pool": self._pool}
        self._limiter = FixedWindowRateLimiter(
            RedisStorage("async+redis://", implementation="redispy", key_prefix=_PREFIX, **options)
        )

    async def hit(self, limit: RateLimitItemPerMinute, user_id: str) -> float | None:
        """Count one; if it is one too many, answer how long (s) until the next minute.

        Raises:
            StoreAwayError: the store did not count it, as far as is known.
        """
        async with self._asking():
            if await self._limiter.hit(limit, user_id):
                return None
            window = await self._limiter.get_window_stats(limit, user_id)
        return max(0.0, window.reset_time - time.time())

    async def take_once(self, name: str, for_s: float) -> bool:
        """Remember a name for a time; False when it is remembered already.

        Raises:
            StoreAwayError: the store did not remember it, as far as is known.
        """
        key, ours = f"{_PREFIX}:{name}", secrets.token_bytes(16)
        async with self._asking():
            if await self._client.set(key, ours, nx=True, px=max(1, ceil(for_s * 1000))):
                return True
            # When a connection breaks, the client asks a second time: then it may be our own.
            return await self._client.get(key) == ours

    @asynccontextmanager
    async def _asking(self) -> AsyncGenerator[None]:
        """Limit the time for a question, and say what is wrong with the store.

        Raises:
            StoreAwayError: the store did not answer.
        """
        try:
            async with patient_timeout(self._question_s):
                yield
        except (AuthenticationError, NoPermissionError) as error:
            raise StoreAwayError(
                f"the store refused the user name or password ({type(error).__name__})",
                is_refused=True,
            ) from error
        except (RedisError, OSError) as error:  # a timeout is an OSError
            raise StoreAwayError(type(error).__name__) from error

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.aclose()


class StoreWindows:
    """Counted by the store, for all gateways together."""

    def __init__(self, store: Store, kind: str, per_minute: int) -> None:
        self._store = store
        self._limit = RateLimitItemPerMinute(per_minute, namespace=kind)

    async def hit(self, user_id: str) -> float | None:
        """Count one; see `Store.hit`."""
        return await self._store.hit(self._limit, user_id)


def check_address(address: Secret) -> None:
    """Refuse what is no address of a store, without connecting to it.

    Raises:
        ConfigError: it is none; the sentence does not quote it.
    """
    _parsed(address)


def _parsed(address: Secret) -> ConnectKwargs:
    try:
        return parse_url(_client_address(address))
    except ValueError:
        raise _wrong_address() from None  # its text would show the password


def _client_address(address: Secret) -> str:
    scheme, separator, rest = address.reveal().partition("://")
    is_url = rest.isprintable() and " " not in rest  # in a password they are written as %20
    if not separator or not rest or scheme not in _SCHEMES or not is_url:
        raise _wrong_address()
    path = urlsplit(f"{_SCHEMES[scheme]}://{rest}").path.strip("/")
    if path and not path.isdecimal():  # the client would take database 0 in its place
        raise _wrong_address()
    return f"{_SCHEMES[scheme]}://{rest}"


def _wrong_address() -> ConfigError:
    return ConfigError(
        "limits.store: give the address of a Redis or Valkey, for example redis://127.0.0.1:6379/0"
    )
