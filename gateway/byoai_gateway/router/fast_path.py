"""Recognizes events that only continue an answer, several at once, without reading each.

For an answer that has begun: nearly all of its events are of this kind. Pure. It refuses whatever
may say anything else; `dialects` then reads event by event.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from byoai_gateway.router.endpoints import Dialect
from byoai_gateway.router.usage_hiding import without_nulls

ContinuedEvents = Callable[[bytes], bytes | None]
"""From whole events to what of them the client gets; None if each must be read."""


class _SomeObject(msgspec.Struct, gc=False):
    pass


class _GoingOn(msgspec.Struct, gc=False):
    """Of a choice that is neither through nor broken; anything else does not decode."""

    delta: _SomeObject | None = None
    finish_reason: None = None
    native_finish_reason: None = None
    error: None = None


class _More(msgspec.Struct, gc=False):
    choices: list[_GoingOn]
    usage: msgspec.UnsetType | None = msgspec.UNSET
    error: None = None
    base_resp: None = None


_MORE: Final = msgspec.json.Decoder(_More)


def continued_events(dialect: Dialect, *, hide_usage: bool) -> ContinuedEvents | None:
    """Return what recognizes events that continue an answer of a dialect, and nothing more.

    It may refuse some that do, and it does not see which choice they belong to. None where nothing
    is quicker than to read each.
    """
    if dialect not in {Dialect.CHAT, Dialect.COMPLETION}:
        return None

    def continued(events: bytes) -> bytes | None:
        if not (events.startswith(b"data: {") and events.endswith(b"}\n\n")):
            return None
        count = events.count(b"\n\n")
        # One object in one line each: nothing else may stand in an event, or be cut by its end.
        if events.count(b"\n") != 2 * count or events.count(b"}\n\ndata: {") != count - 1:
            return None
        try:
            if not events.isascii():
                events.decode()  # what is skipped here, the client will read
            nulls = _MORE.decode(events[6:]).usage is None if count == 1 else _nulls(events, count)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        return without_nulls(events, nulls) if nulls and hide_usage else events

    return continued


def _nulls(events: bytes, count: int) -> int:
    """Return how many of several events have a null for their usage."""
    chunks = _MORE.decode_lines(events[6:-2].replace(b"\n\ndata: ", b"\n"))
    if len(chunks) != count:
        raise ValueError("several values in a line")
    return [it.usage for it in chunks].count(None)
