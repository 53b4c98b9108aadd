"""What is kept of requests, so that they can be sent again, and of answers, and the room for it.

All together they fill no more than one budget, and one user's no more than a share of it. What a
request declares is counted before it comes, so that what is let in can come to its end; what
comes in chunks, and all that providers send, is counted as it comes. Small answers cost nothing.
"""

import asyncio
from collections import Counter
from http import HTTPStatus
from typing import Final, Self

from byoai_gateway.refusals import Refusal
from byoai_gateway.router.failures import Failure, FailureKind
from byoai_shared.http1.errors import BodyTooLarge, HttpError
from byoai_shared.http1.incoming import BodySource, IncomingBody

SHARES: Final = 4
"""No user, and so no request, gets more than one of so many parts."""
FREE_BYTES: Final = 64 * 1024
"""So much of an answer is kept without being counted: as much as a connection keeps anyway."""


def share_of(most_bytes: int) -> int:
    """How much of a budget one user gets."""
    return most_bytes // SHARES


class Budget:
    """How many bytes of bodies and answers all requests together keep."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._used_by: Counter[str] = Counter()
        self.used = 0

    def hold(self, user_id: str, size: int) -> "Held":
        """Count `size` bytes of a user's, and what comes beyond them, until the block is left.

        Raises:
            Refusal: see `take`.
        """
        held = Held(self, user_id)
        if size:
            held.grow(size)
        return held

    @property
    def share(self) -> int:
        """How much of it one user gets, and so one request."""
        return share_of(self._most)

    def take(self, user_id: str, size: int, *, held: int) -> None:
        """Count more bytes for a request that holds `held` of them already.

        Raises:
            Refusal: there is no room for them (503), this user has had their share (429), or
                the request alone exceeds it (413).
        """
        if held + size > self.share:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "memory_share_exceeded",
                f"this request and its answer need more than {self.share} bytes of this "
                "gateway's memory, which is the share of one user; send or ask for less at a time",
            )
        if self.used + size > self._most:
            raise _overloaded(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the gateway keeps as many large requests and answers as it can now; "
                "try again in a moment",
            )
        if self._used_by[user_id] + size > self.share:
            raise _overloaded(
                HTTPStatus.TOO_MANY_REQUESTS,
                "your large requests and answers under way fill your share of this gateway's "
                "memory; try again when one of them is over",
            )
        self.used += size
        self._used_by[user_id] += size

    def used_by(self, user_id: str) -> int:
        """How much of it is one user's."""
        return self._used_by[user_id]

    def give(self, user_id: str, size: int) -> None:
        """Count fewer bytes."""
        self.used -= size
        self._used_by[user_id] -= size
        if not self._used_by[user_id]:
            del self._used_by[user_id]


class Held:
    """What one request keeps of a budget."""

    __slots__ = ("_budget", "_user_id", "size")

    def __init__(self, budget: Budget, user_id: str) -> None:
        self._budget = budget
        self._user_id = user_id
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.size:
            self.shrink(self.size)

    def grow(self, by: int) -> None:
        """Count more bytes. Raises what `Budget.take` does."""
        self._budget.take(self._user_id, by, held=self.size)
        self.size += by

    def shrink(self, by: int) -> None:
        """Count fewer bytes; what is left is given back with the request."""
        self._budget.give(self._user_id, by)
        self.size -= by

    async def keep(self, body: IncomingBody) -> bytes:
        """Take a request's body in, whole; of what was counted before it, nothing is counted anew.

        Cancelled or refused, the rest of it is left where it is.

        Raises:
            Refusal: there is no room for what came.
            HttpError: it breaks off or is too large.
        """
        return await self._take_in(body, self.size, None)

    async def keep_answer(self, body: IncomingBody, most_bytes: int) -> bytes:
        """Take an answer in, whole, and count what came of it; also when it fails.

        Raises:
            Refusal: there is no room for what came.
            HttpError: it breaks off or is too large.
        """
        if not body.complete:
            return await self._take_in(body, FREE_BYTES, most_bytes)
        data = body.take()
        if len(data) > FREE_BYTES:
            self.grow(len(data) - FREE_BYTES)
        return data

    async def _take_in(self, body: IncomingBody, counted: int, most_bytes: int | None) -> bytes:
        sink = _Kept(self, counted, most_bytes)
        body.attach(sink)
        try:
            await sink.whole
            return bytes(sink.data)
        finally:
            body.detach()
            sink.seen()
            del sink  # an error that it holds holds this frame


class _Kept:
    """A `BodySink` that counts what it keeps."""

    __slots__ = ("_counted", "_held", "_most_bytes", "data", "whole")

    def __init__(self, held: Held, counted: int, most_bytes: int | None) -> None:
        self._held = held
        self._counted = counted
        self._most_bytes = most_bytes
        # Not a list of pieces: each of those costs dozens of bytes more than what it holds.
        self.data = bytearray()
        self.whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def seen(self) -> None:
        """Let nobody miss an error that came in the turn in which its reader was cancelled."""
        if self.whole.done() and not self.whole.cancelled():
            self.whole.exception()

    def attached(self, source: BodySource) -> None:
        """See `BodySink`; there is no reason to hold it back."""

    def write(self, data: bytes) -> None:
        """See `BodySink`."""
        if self.whole.done():
            return
        size = len(self.data) + len(data)
        if self._most_bytes is not None and size > self._most_bytes:
            self.whole.set_exception(BodyTooLarge(self._most_bytes))
            return
        if size > self._counted:
            try:
                self._held.grow(size - self._counted)
            except Refusal as refusal:
                self.whole.set_exception(refusal)
                return
            self._counted = size
        self.data += data

    def flush(self) -> None:
        """See `BodySink`."""

    def finish(self, data: bytes = b"") -> None:
        """See `BodySink`."""
        if data:
            self.write(data)
        if not self.whole.done():
            self.whole.set_result(None)

    def fail(self, error: HttpError) -> None:
        """See `BodySink`."""
        if not self.whole.done():
            self.whole.set_exception(error)


def no_room(refusal: Refusal) -> Failure:
    """Say of an answer why it could not be kept."""
    return Failure(
        FailureKind.OVERLOADED, refusal.status, refusal.error(), retry_after_s=refusal.retry_after_s
    )


def _overloaded(status: HTTPStatus, message: str) -> Refusal:
    return Refusal(status, "overloaded", message, retry_after_s=1)
