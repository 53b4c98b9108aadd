"""Whether the database answers: pure state, so that no request waits for what is known to be away.

After a failure, questions are refused at once, except for one each `PROBE_EVERY_S` that finds out
whether the database is back. A reader that has had no answer for `SILENT_S` makes the database
suspect: who has an older answer uses it instead of waiting as well.
"""

import time
from collections.abc import Callable
from typing import Final

PROBE_EVERY_S: Final = 1.0
SILENT_S: Final = 1.0


class Question:
    """One transaction, from its beginning until it is answered, failed or dropped."""

    __slots__ = ("began_at", "is_probe")

    def __init__(self, began_at: float, *, is_probe: bool) -> None:
        self.began_at = began_at
        self.is_probe = is_probe


class Availability:
    """What the transactions of this process say of the database."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answered_at = clock()
        self._is_away = False
        self._probe_at = 0.0
        self._probe: Question | None = None
        # In the order in which they began.
        self._unanswered: dict[Question, None] = {}
        # When the last question began whose asker left after a long wait.
        self._left_at = float("-inf")
        self.stale_answers = 0
        """How many requests used an older answer because the database did not answer."""
        self.write_fault: str | None = None
        """Why the database takes no writes; None while it does, as far as is known."""

    @property
    def is_away(self) -> bool:
        """Whether the last question failed for want of an answer."""
        return self._is_away

    @property
    def is_suspect(self) -> bool:
        """Whether it is away, or leaves a reader waiting unusually long."""
        if self._is_away or self._left_at >= self._answered_at:
            return True
        oldest = next(iter(self._unanswered), None)
        return (
            oldest is not None
            and oldest.began_at >= self._answered_at
            and self._clock() - oldest.began_at >= SILENT_S
        )

    @property
    def is_probe_due(self) -> bool:
        """Whether somebody should ask now: nobody else is finding out whether it is back."""
        return not self._is_away or (self._probe is None and self._clock() >= self._probe_at)

    @property
    def silent_s(self) -> float:
        """For how long (s) it has not answered; 0 while it does."""
        return self._clock() - self._answered_at if self.is_suspect else 0.0

    def ask(self, *, is_read: bool) -> Question | None:
        """Begin a question; None when it is not to be asked now. End it with one of the others."""
        now = self._clock()
        question = Question(now, is_probe=self._is_away)
        if self._is_away:
            if self._probe is not None or now < self._probe_at:
                return None
            self._probe = question
        if is_read:
            self._unanswered[question] = None
        return question

    def answered(self, question: Question) -> None:
        """End a question with an answer, of whatever kind."""
        self._end(question)
        self._answered_at = self._clock()
        self._is_away = False

    def failed(self, question: Question) -> None:
        """End a question that got no answer."""
        self._end(question)
        # A question from before the last answer says nothing about now.
        if question.is_probe or question.began_at >= self._answered_at:
            self._is_away = True
            self._probe_at = self._clock() + PROBE_EVERY_S

    def drop(self, question: Question) -> None:
        """End a question whose asker has left; if after a long wait, the database is suspect."""
        if question in self._unanswered and self._clock() - question.began_at >= SILENT_S:
            self._left_at = question.began_at
        self._end(question)

    def _end(self, question: Question) -> None:
        self._unanswered.pop(question, None)
        if self._probe is question:
            self._probe = None
