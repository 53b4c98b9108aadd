"""What is learnt from attempts: for the breakers, the metrics, the log and the users' settings.

It decides nothing: what a failure says about whom is in `decision`.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, Final, NamedTuple, Protocol

from byoai_gateway.provider_config import RouterSection
from byoai_gateway.router.agent_choice import Candidate, choose_agent
from byoai_gateway.router.breaker import Breakers, Key
from byoai_gateway.router.decision import attention_for, counts_for_breaker, operators_setting
from byoai_gateway.router.failures import Failure
from byoai_gateway.router.upstream import ProviderName
from byoai_gateway.tally import ANSWERED, CLIENT_LEFT, AttemptTally
from byoai_shared.logs import get_logger

_WARNED_AGAIN_S: Final = 60.0

log = get_logger("gateway")

Note = asyncio.Task[None]
"""What was learnt of a user's setting, on its way into the database."""


class Flags(Protocol):
    """Where it is noted that a setting of a request's user stopped working, or works again.

    Neither raises: an answer must not fail for it.
    """

    def noticed(self, setting: str, code: str, model: str | None) -> Coroutine[Any, Any, None]:
        """A provider refused because of this setting, as it was when the request began.

        `model` is the name that the provider was asked for, if it was asked for one.
        """
        ...

    def worked(self, asked: "Asked") -> Coroutine[Any, Any, None] | None:
        """A provider answered with the settings as they were when the request began.

        None if there is nothing to note, as nearly always.
        """
        ...


class Asked(NamedTuple):
    """Who is asked, and for whom."""

    user_id: str
    provider: ProviderName
    flags: Flags
    model: str | None = None
    """The name that the provider is asked for."""
    agent_id: str = ""
    """The agent that is asked, where the provider has several."""

    @property
    def key(self) -> Key:
        """Of its breaker."""
        return (self.user_id, self.provider, self.agent_id)


class Ledger:
    """The attempts of one gateway; whoever is admitted says what became of it, once."""

    def __init__(self, settings: RouterSection, clock: Callable[[], float]) -> None:
        self.attempts = AttemptTally()
        self._clock = clock
        self._warned_at: float | None = None
        self._breakers = Breakers(settings.breaker_failures, settings.breaker_open_s, clock)
        self._notes: set[Note] = set()

    def admit(self, asked: Asked) -> float | None:
        """Return None if the provider may be asked, else for how many seconds it may not."""
        return self._breakers.admit(asked.key)

    def choose(
        self,
        asked: Asked,
        candidates: Sequence[Candidate],
        tried: Collection[str],
        *,
        may_probe: bool,
    ) -> str | None:
        """Return the agent to ask, which is then to be admitted; None if none may be asked."""

        def wait_s(agent_id: str) -> float | None:
            return self._breakers.wait_s((asked.user_id, asked.provider, agent_id))

        return choose_agent(candidates, wait_s, tried, may_probe=may_probe)

    def wait_s(self, asked: Asked, candidates: Sequence[Candidate]) -> float:
        """Return for how many seconds none of the agents may be asked."""
        keys = ((asked.user_id, asked.provider, it.agent_id) for it in candidates)
        return min((self._breakers.wait_s(key) or 0.0 for key in keys), default=0.0)

    def answered(self, asked: Asked) -> Note | None:
        """The provider answered, to the end."""
        self._breakers.succeeded(asked.key)
        self.attempts.ended(asked.provider, ANSWERED)
        note = asked.flags.worked(asked)
        return None if note is None else self._noting(note)

    def failed(
        self, asked: Asked, failure: Failure, answered_at: float | None = None
    ) -> Note | None:
        """The provider was asked, and failed; `answered_at` is when its answer had begun."""
        self.attempts.ended(asked.provider, failure.kind)
        if counts_for_breaker(failure):
            self._breakers.failed(asked.key, answered_at)
        else:
            # Somebody answered, even if it was with a no.
            self._breakers.released(asked.key)
        return self.explained(asked, failure)

    def left(self, asked: Asked, *, was_asked: bool) -> None:
        """Nothing is known of the provider: it was not asked, or not to the end."""
        self._breakers.released(asked.key)
        if was_asked:
            self.attempts.ended(asked.provider, CLIENT_LEFT)

    def explained(self, asked: Asked, failure: Failure) -> Note | None:
        """Say in the log why a request failed, and at the setting that is to blame, if one is."""
        log.info(
            "attempt.failed",
            provider=asked.provider.value,
            reason=failure.kind.value,
            status=failure.status,
            user_id=asked.user_id,
        )
        if setting := operators_setting(asked.provider, failure):
            self._warn_of(setting, failure)
        attention = attention_for(asked.provider, failure)
        if attention is None:
            return None
        return self._noting(asked.flags.noticed(*attention, failure.model or asked.model))

    def _warn_of(self, setting: str, failure: Failure) -> None:
        """Tell the operator, who alone can mend it; not for each request that meets it."""
        now = self._clock()
        if self._warned_at is not None and now - self._warned_at < _WARNED_AGAIN_S:
            return
        self._warned_at = now
        log.warning(
            "provider.misconfigured",
            setting=setting,
            reason=failure.kind.value,
            next="requests to the default provider fail; byoai-gateway check says what to do",
        )

    async def settle(self) -> None:
        """Wait for the notes whose clients have left; for when no more requests come."""
        if self._notes:
            await asyncio.wait(self._notes)

    def _noting(self, note: Coroutine[Any, Any, None]) -> Note:
        """Begin a note, which is written though its client leaves, as most do once answered."""
        task = asyncio.create_task(note)
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)
        return task
