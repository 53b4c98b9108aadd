"""Writes a running agent's state; no fault of the disk ends the agent or holds up its event loop.

What could not be written stays in memory, where the agent goes on to use it, and is tried again
with each status report, every few seconds. A person is told once when writing begins to fail and
once when it works again. A status report that cannot be written is dropped: the next one replaces
it. Only the keys of a renewal are written before they are used, because an agent that forgot an
offered key would look like a copy of itself.
"""

from dataclasses import dataclass, replace
from typing import Final

from byoai_agent.disk_thread import DiskThread
from byoai_agent.reporter import Reporter
from byoai_agent.state import KeyPair, Membership, StateDirectory, StateError

_WAIT_S: Final = 30.0
"""For a write whose outcome matters, and for each status report."""
_SHORT_WAIT_S: Final = 2.0
"""For what is in memory already: the caller has other things to do."""


@dataclass(frozen=True, slots=True)
class _Unsaved:
    """What the disk does not have yet; the newest of each."""

    link: KeyPair | None = None
    end_to_end: KeyPair | None = None
    membership: Membership | None = None

    @property
    def is_empty(self) -> bool:
        return self == _Unsaved()

    def write(self, state: StateDirectory) -> None:
        """Write everything, in an order in which each step alone is sound.

        Raises:
            StateError: something could not be written.
        """
        if self.end_to_end is not None:
            state.save_end_to_end(self.end_to_end)
        if self.link is not None:
            state.save_link(self.link)
        if self.membership is not None:
            state.save_membership(self.membership)

    def without(self, written: "_Unsaved") -> "_Unsaved":
        """What is left once `written` is on the disk; what changed meanwhile stays."""
        return _Unsaved(
            None if self.link is written.link else self.link,
            None if self.end_to_end is written.end_to_end else self.end_to_end,
            None if self.membership is written.membership else self.membership,
        )


class StateKeeper:
    """The one writer of a running agent's state."""

    def __init__(
        self,
        state: StateDirectory,
        reporter: Reporter,
        *,
        wait_s: float = _WAIT_S,
        short_wait_s: float = _SHORT_WAIT_S,
    ) -> None:
        self._state = state
        self._reporter = reporter
        self._wait_s = wait_s
        self._short_wait_s = short_wait_s
        self._thread = DiskThread()
        self._unsaved = _Unsaved()
        self.problem = ""
        """Why the disk does not have everything; empty when it has."""

    async def keep(
        self,
        *,
        link: KeyPair | None = None,
        end_to_end: KeyPair | None = None,
        membership: Membership | None = None,
    ) -> None:
        """Write what is in use already; what fails is tried again with the next report."""
        was = self._unsaved
        self._unsaved = replace(
            was,
            link=link or was.link,
            end_to_end=end_to_end or was.end_to_end,
            membership=membership or was.membership,
        )
        await self._attempt(None, self._short_wait_s)

    async def report(self, status: bytes) -> None:
        """Write what is not saved yet and the status report."""
        await self._attempt(status, self._wait_s)

    async def close(self, status: bytes) -> None:
        """Write both a last time; a disk that does not answer is not waited for long."""
        await self._attempt(status, self._short_wait_s)

    async def save_offer(self, key_pem: bytes, end_to_end: KeyPair | None) -> None:
        """Write the keys of a renewal before they are offered.

        Raises:
            StateError: they are not on the disk.
        """
        unsaved = self._unsaved

        def write() -> None:
            unsaved.write(self._state)  # the key that signs must be there as well
            self._state.save_next_key(key_pem, end_to_end)

        try:
            await self._thread.call(write, self._wait_s)
        except TimeoutError as error:
            raise self._too_slow() from error
        self._unsaved = self._unsaved.without(unsaved)

    async def discard_offer(self) -> None:
        """Forget the keys of a renewal that the gateway does not take."""
        try:
            await self._thread.call(self._state.discard_next_key, self._short_wait_s)
        except TimeoutError:
            return  # offered once more after a restart, and refused once more

    async def _attempt(self, status: bytes | None, timeout_s: float) -> None:
        unsaved = self._unsaved

        def write() -> None:
            unsaved.write(self._state)
            if status is not None:
                self._state.save_status(status)

        try:
            await self._thread.call(write, timeout_s)
        except StateError as error:
            self._failed(str(error))
        except TimeoutError:
            if timeout_s >= self._wait_s:
                self._failed(str(self._too_slow()))
        else:
            self._unsaved = self._unsaved.without(unsaved)
            self._worked()

    def _failed(self, reason: str) -> None:
        if not self.problem:
            self._reporter.state_not_written(reason)
        self.problem = reason

    def _worked(self) -> None:
        if self.problem and self._unsaved.is_empty:
            self._reporter.state_written()
            self.problem = ""

    def _too_slow(self) -> StateError:
        return StateError(
            f"the disk of {self._state.path} did not finish a write within {self._wait_s:g} s; "
            "check whether it is overloaded or, if it is a network file system, reachable",
            is_fatal=False,
        )
