"""The store that gateways share (`limits.store`), and what is done while it does not answer.

For users' calls `limits.when_store_is_down` decides: each gateway answers for itself, or the call
is refused. Agents' calls are always answered: no agent keeps its links without tokens, so refusing
them would take every tunnel offline. One question a second finds out whether the store is back.
"""

import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final, TypeVar

from byoai_gateway.config import LimitsSection
from byoai_gateway.rate_windows import Store, StoreAwayError
from byoai_gateway.refusals import Refusal
from byoai_shared.logs import get_logger

ASK_AGAIN_S: Final = 1.0
"""Between two requests that find out whether a store that is away is back."""
_AWAY_RETRY_S: Final = 2

_Answer = TypeVar("_Answer")

log = get_logger("gateway")


class SharedStore:
    """Asks the store, or this gateway alone; close it with `close`.

    Raises:
        ConfigError: `limits.store` is no address of a store.
    """

    def __init__(
        self, settings: LimitsSection, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.store = Store(settings.store) if settings.store else None
        self._clock = clock
        self._may_answer_alone = settings.when_store_is_down == "open"
        self._ask_again_at = 0.0
        self._refuses_us = False
        self.is_away = False
        """Whether the store failed to answer when it was asked last."""
        self.answered_alone = 0
        """What this gateway has answered by itself because the store was away."""

    async def ask(
        self,
        question: Callable[[], Awaitable[_Answer]],
        alone: Callable[[], Awaitable[_Answer]],
    ) -> _Answer:
        """Ask the store if it answers, else this gateway if `limits.when_store_is_down` allows it.

        Raises:
            Refusal: it is not allowed (503).
        """
        if self._may_answer_alone:
            return await self.ask_for_agent(question, alone)
        try:
            return await self._ask_store(question)
        except StoreAwayError as error:
            raise _unavailable() from error

    async def ask_for_agent(
        self,
        question: Callable[[], Awaitable[_Answer]],
        alone: Callable[[], Awaitable[_Answer]],
    ) -> _Answer:
        """Ask the store if it answers, else this gateway; no setting forbids it."""
        if self.is_away:
            if self._clock() < self._ask_again_at:
                return await self._answer_alone(alone)
            self._ask_again_at = self._clock() + ASK_AGAIN_S  # this request finds out for all
        try:
            return await self._ask_store(question)
        except StoreAwayError:
            return await self._answer_alone(alone)

    async def why_not(self, trial: Callable[[], Awaitable[object]]) -> str:
        """Say why the store cannot answer now, if what needs it is refused; else empty."""
        try:
            await trial()
        except StoreAwayError as error:
            self._note_away(error)
        else:
            self._note_back()
        return "" if self._may_answer_alone else self._why_away()

    def degraded(self) -> str:
        """Say what is done without the store; empty while it answers, or nothing is done."""
        if not self._may_answer_alone or not self.is_away:
            return ""
        return f"{self._why_away()}; this gateway counts by itself, with the same limits"

    async def close(self) -> None:
        """Close the connections to the store."""
        if self.store is not None:
            await self.store.close()

    async def _ask_store(self, question: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Ask the store, and note whether it answers.

        Raises:
            StoreAwayError: it does not.
        """
        try:
            answer = await question()
        except StoreAwayError as error:
            self._note_away(error)
            raise
        self._note_back()
        return answer

    async def _answer_alone(self, alone: Callable[[], Awaitable[_Answer]]) -> _Answer:
        self.answered_alone += 1
        return await alone()

    def _note_away(self, error: StoreAwayError) -> None:
        """Log a change, not every request that meets it."""
        self._ask_again_at = self._clock() + ASK_AGAIN_S
        self._refuses_us = error.is_refused
        if self.is_away:
            return
        self.is_away = True
        until = (
            "each gateway counts by itself, with the same limits"
            if self._may_answer_alone
            else "users' requests are refused with 503, and agents go on"
        )
        log.warning(
            "limits.store_away",
            setting="limits.store",
            reason=str(error),
            next=f"see that the store runs and that limits.store leads to it; until it answers "
            f"{until} (limits.when_store_is_down)",
        )

    def _note_back(self) -> None:
        if self.is_away:
            self.is_away = False
            log.info("limits.store_back")

    def _why_away(self) -> str:
        if not self.is_away:
            return ""
        found = "refuses the user name or password" if self._refuses_us else "does not answer"
        return f"no request can be counted for all gateways: limits.store {found}"


def _unavailable() -> Refusal:
    return Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "limits_unavailable",
        "the store that the gateways share does not answer, so nothing can be counted; "
        "try again in a few seconds",
        retry_after_s=_AWAY_RETRY_S,
    )
