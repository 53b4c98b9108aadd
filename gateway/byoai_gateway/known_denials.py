"""The denials that a gateway knows, in the order in which they changed.

There may be a great many, all of them new or all of them over at once. So nothing here works on
more than a page of them in one turn of the event loop. It reads no database.
"""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from byoai_shared.protocol.trust import SWEEP_ROWS, Denial, DenialSet

PAGE_ROWS: Final = SWEEP_ROWS
"""Denials that are read, changed or looked at in one turn of the event loop."""

_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class Rules:
    """What stands for denials that are forgotten."""

    expired_before: int = 0
    """Denials that ended before this moment are over."""
    issued_after: int = 0
    """Tokens issued up to this moment are refused, so denials made until then are over."""


class Change(msgspec.Struct, frozen=True, gc=False):
    """A denial and the revision that made it what it is."""

    revision: int
    denial: Denial


class KnownDenials:
    """Denials in the order of their revisions; one caller at a time may use it."""

    def __init__(self) -> None:
        # It drops nothing by itself: a relay takes a whole only with its digest.
        self.set: Final = DenialSet(sys.maxsize)
        self._changes: dict[str, Change] = {}
        self._rules = Rules()
        self._is_pruned = True

    def __len__(self) -> int:
        """How many are in force."""
        return len(self.set)

    async def apply(self, pages: deque[list[Change]], rules: Rules) -> None:
        """Add changes that are newer than all before, and forget what is over by the rules.

        It takes the pages out of `pages`. One that is cancelled can be done again.
        """
        if rules != self._rules:
            self._rules, self._is_pruned = rules, False
        self._apply((), rules)
        while pages:
            self._apply(pages.popleft(), rules)
            await asyncio.sleep(0)
        while not self.set.is_swept:
            self.set.sweep(PAGE_ROWS)
            await asyncio.sleep(0)
        if not self._is_pruned:
            await self._prune()

    async def since(self, base: int) -> tuple[Denial, ...]:
        """Return what changed after a revision, withdrawn denials too; after 0, those in force."""
        changed: list[Denial] = []
        async for change in in_turns(reversed(self._changes.values())):
            if change.revision <= base:
                break
            if base or not self.set.is_over(change.denial):
                changed.append(change.denial)
        changed.reverse()
        return tuple(changed)

    def _apply(self, page: Iterable[Change], rules: Rules) -> None:
        denials = (change.denial for change in page)
        self.set.apply(
            denials, expired_before=rules.expired_before, issued_after=rules.issued_after
        )
        for change in page:
            subject = change.denial.subject
            self._changes.pop(subject, None)
            self._changes[subject] = change

    async def _prune(self) -> None:
        """Free the changes that are over."""
        changes = in_turns(self._changes.values())
        over = [it.denial.subject async for it in changes if self.set.is_over(it.denial)]
        async for subject in in_turns(over):
            del self._changes[subject]
        self._is_pruned = True


async def in_turns(rows: Iterable[_Row]) -> AsyncIterator[_Row]:
    """Go through rows, and let the event loop turn after each page of them."""
    for number, row in enumerate(rows, 1):
        yield row
        if number % PAGE_ROWS == 0:
            await asyncio.sleep(0)
