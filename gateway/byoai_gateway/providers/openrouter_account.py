"""What a user's key is worth at OpenRouter, and which models it may ask for.

A key is checked with `GET /key`: lists of models are public and prove nothing. The user's own list
of models is filtered by their settings there; when it cannot be had, the public one stands in.
Lists are kept per key, and a list that has aged is given out while a new one is fetched: nobody
waits for OpenRouter twice. A key that OpenRouter refuses loses its list at once.

It refuses management keys, which cannot ask models but could make and delete keys, and follows
no link to another page that leads elsewhere: the key would go with it. OpenRouter's label of a
key is not passed on, because it shows parts of the key.
"""

import asyncio
import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from byoai_gateway.clock import Clock
from byoai_gateway.providers.openrouter import (
    MAX_ANSWER_BYTES,
    MODELS_OF_ALL,
    MODELS_OF_USER,
    OpenRouter,
)
from byoai_gateway.providers.openrouter_answers import (
    KeyLimits,
    OfferedModel,
    key_limits,
    models_page,
)
from byoai_gateway.providers.openrouter_names import OpenRouterOffer
from byoai_gateway.router.classify import timed_out
from byoai_gateway.router.failures import AttemptFailed, Failure, FailureKind
from byoai_gateway.router.upstream import ProviderName
from byoai_shared.api_errors import api_error
from byoai_shared.logs import get_logger
from byoai_shared.secret import Secret

log = get_logger("gateway")

FIRST_WAIT_S: Final = 10.0
"""For a list that nobody has asked for yet; the fetch itself goes on."""
MAX_STALE_S: Final = 24 * 3600.0
RETRY_S: Final = 30.0
"""Before a list that could not be had is asked for again."""
MAX_PAGES: Final = 20
MAX_MODELS: Final = 10_000
MAX_LISTS: Final = 10_000
MAX_REFRESHES: Final = 256
AT_ONCE: Final = 8
_NO_USER_LIST: Final = frozenset({
    FailureKind.FORBIDDEN,
    FailureKind.CREDITS_SPENT,
    FailureKind.MODEL_NOT_FOUND,
    FailureKind.REJECTED,
    FailureKind.RATE_LIMITED,
    FailureKind.SERVER_ERROR,
    FailureKind.PROVIDER_TIMEOUT,
    FailureKind.MALFORMED,
})  # fmt: skip
"""After these the public list stands in. Not after a refused key, which must show."""


@dataclass(frozen=True, slots=True)
class ModelList:
    """The models that a key may ask for."""

    models: tuple[OfferedModel, ...]
    fetched_at: float
    is_public: bool
    """Whether it is the list for everybody: the user's settings may forbid some of it."""

    @property
    def names(self) -> tuple[str, ...]:
        """What to write in a request."""
        return tuple(it.id for it in self.models)


@dataclass(slots=True)
class _Kept:
    """What is known for a key."""

    found: ModelList
    ask_again_at: float


class OpenRouterAccounts:
    """Checks keys and keeps lists of models; made by `open_openrouter_accounts`."""

    def __init__(self, service: OpenRouter, fresh_s: float, clock: Clock) -> None:
        self._service = service
        self._fresh_s = fresh_s
        self._clock = clock
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._refreshes: dict[bytes, asyncio.Task[ModelList]] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._known: dict[str, OfferedModel] = {}
        # Not the key itself, and nothing that could be looked up from a key outside this process.
        self._pepper = secrets.token_bytes(32)

    async def check_key(self, key: Secret) -> KeyLimits:
        """Ask OpenRouter about a key.

        Raises:
            AttemptFailed: it is refused, is a management key, or OpenRouter cannot be asked.
        """
        limits = await self._service.ask("/key", key, key_limits, MAX_ANSWER_BYTES)
        if not limits.can_ask_models:
            raise AttemptFailed(_management_key())
        return limits

    async def models(self, key: Secret) -> ModelList:
        """The models that a key may ask for; waits only when none are known yet.

        Raises:
            AttemptFailed: none are known, and they cannot be had now.
        """
        name = self._name(key)
        kept = self._kept.get(name)
        now = self._clock()
        if kept is None or now - kept.found.fetched_at > MAX_STALE_S:
            return await self._wait_for(self._refresh(name, key))
        self._kept.move_to_end(name)
        if now >= kept.ask_again_at and self._has_room(name):
            self._refresh(name, key)
        return kept.found

    def offer(self, key: Secret) -> OpenRouterOffer:
        """What is known of a key's models, for a request: nothing is fetched for it.

        A list that has aged rules no name out: OpenRouter may have new models since.
        """
        kept = self._kept.get(self._name(key))
        if kept is None:
            return OpenRouterOffer()
        is_fresh = self._clock() - kept.found.fetched_at <= self._fresh_s
        return OpenRouterOffer(kept.found.names, is_complete=is_fresh)

    async def settled(self) -> None:
        """Return when nothing is being fetched in the background."""
        while self._refreshes:
            await asyncio.wait(tuple(self._refreshes.values()))
            # What ended is taken out by its callback, in the next turn at the latest.
            await asyncio.sleep(0)

    async def close(self) -> None:
        """End what is being fetched."""
        running = tuple(self._refreshes.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _name(self, key: Secret) -> bytes:
        return hmac.digest(self._pepper, key.reveal().encode(), hashlib.sha256)

    def _has_room(self, name: bytes) -> bool:
        return name not in self._refreshes and len(self._refreshes) < MAX_REFRESHES

    def _refresh(self, name: bytes, key: Secret) -> asyncio.Task[ModelList]:
        """The one fetch of this key's list that runs, begun if there is none."""
        task = self._refreshes.get(name)
        if task is not None:
            return task
        if not self._has_room(name):
            raise AttemptFailed(_busy())
        task = asyncio.create_task(self._fetch_and_keep(name, key))
        self._refreshes[name] = task
        task.add_done_callback(lambda done: self._refreshed(name, done))
        return task

    async def _wait_for(self, task: asyncio.Task[ModelList]) -> ModelList:
        done, _ = await asyncio.wait((task,), timeout=FIRST_WAIT_S)
        if not done:
            raise AttemptFailed(timed_out(ProviderName.OPENROUTER, FIRST_WAIT_S))
        return task.result()

    async def _fetch_and_keep(self, name: bytes, key: Secret) -> ModelList:
        async with self._turns:
            found = await self._fetch(key)
        self._kept[name] = _Kept(found, found.fetched_at + self._fresh_s)
        self._kept.move_to_end(name)
        if len(self._kept) > MAX_LISTS:
            self._kept.popitem(last=False)
        return found

    def _refreshed(self, name: bytes, task: asyncio.Task[ModelList]) -> None:
        del self._refreshes[name]
        if task.cancelled():
            return
        match task.exception():
            case None:
                return
            case AttemptFailed(failure=Failure(kind=FailureKind.KEY_REFUSED as kind)):
                self._kept.pop(name, None)
                reason = kind.value
            case AttemptFailed(failure=Failure(kind=kind)):
                reason = kind.value
            case error:
                reason = type(error).__name__
        kept = self._kept.get(name)
        if kept is not None:
            kept.ask_again_at = self._clock() + RETRY_S
        log.info("openrouter.models_not_fetched", reason=reason, next="what is known is shown")

    async def _fetch(self, key: Secret) -> ModelList:
        is_public = False
        try:
            models = await self._all_pages(MODELS_OF_USER, key)
        except AttemptFailed as error:
            if error.failure.kind not in _NO_USER_LIST:
                raise
            models = await self._all_pages(MODELS_OF_ALL, None)
            is_public = True
        return ModelList(self._shared(models), self._clock(), is_public)

    async def _all_pages(self, path: str, key: Secret | None) -> list[OfferedModel]:
        models: list[OfferedModel] = []
        seen: set[str] = set()
        following: str | None = path
        while following is not None and following not in seen and len(seen) < MAX_PAGES:
            seen.add(following)
            page = await self._service.ask(following, key, models_page, MAX_ANSWER_BYTES)
            models += page.models
            following = self._service.next_page(following, page.next_link)
        return models[:MAX_MODELS]

    def _shared(self, models: list[OfferedModel]) -> tuple[OfferedModel, ...]:
        """Equal entries of different keys' lists once: the lists hardly differ."""
        if len(self._known) > MAX_MODELS:
            self._known.clear()
        return tuple(self._share(model) for model in models)

    def _share(self, model: OfferedModel) -> OfferedModel:
        known = self._known.get(model.id)
        if known is not None and known == model:
            return known
        self._known[model.id] = model
        return model


@asynccontextmanager
async def open_openrouter_accounts(
    service: OpenRouter, fresh_s: float, clock: Clock
) -> AsyncGenerator[OpenRouterAccounts]:
    """Own the fetches in the background while the block runs."""
    accounts = OpenRouterAccounts(service, fresh_s, clock)
    try:
        yield accounts
    finally:
        await accounts.close()


def _management_key() -> Failure:
    message = (
        "this is a management key of OpenRouter, which cannot ask models; make an ordinary key at "
        "https://openrouter.ai/settings/keys and enter that one"
    )
    error = api_error(HTTPStatus.FORBIDDEN, "management_key", message)
    return Failure(FailureKind.KEY_REFUSED, HTTPStatus.FORBIDDEN, error)


def _busy() -> Failure:
    message = "too many lists of models are being fetched from OpenRouter; try again in a moment"
    error = api_error(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", message)
    return Failure(FailureKind.UNREACHABLE, HTTPStatus.SERVICE_UNAVAILABLE, error, retry_after_s=1)
