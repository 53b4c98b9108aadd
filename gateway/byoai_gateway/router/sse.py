"""Cutting a stream of server-sent events where its events end, and nowhere else.

It knows lines and blank lines (LF, CRLF, CR, mixed), not what the events say: `dialects` does.
Bytes are neither changed nor joined anew, an event comes out as it came in, with the blank line
that ends it. The work is linear however the bytes are cut. It refuses events beyond its limit.
"""

import re
from typing import Final

from byoai_shared.errors import ByoaiError

# A line's end and right behind it another. The first half of a CRLF needs no mention.
_END: Final = re.compile(rb"\n(?:\n|\r\n?)|\r\r\n?")
_LONGEST_END: Final = 4


class EventTooLarge(ByoaiError):
    """One event is larger than agreed."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"event exceeds the limit of {limit} bytes")
        self.limit = limit


class EventSplitter:
    """Bytes in, whole events out. What is begun waits for its end."""

    __slots__ = ("_max_event_bytes", "_searched", "_skips_lf", "_tail")

    def __init__(self, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._tail = bytearray()
        self._searched = 0  # no event ends before this place in the tail
        self._skips_lf = False  # the last event ended with a CR whose LF may still come

    @property
    def kept_bytes(self) -> int:
        """How much has begun and has not ended."""
        return len(self._tail)

    @property
    def begun(self) -> bytes:
        """The event that has begun and has not ended."""
        return bytes(self._tail)

    def whole(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Say which events are whole with what was read, in one piece, and what is behind them.

        Nothing is taken: that is for `feed`, or for `go_on` with the second part. None if it takes
        `feed` to know.
        """
        end = data.rfind(b"\n\n") + 2
        if end < 2 or self._skips_lf or len(data) > self._max_event_bytes or b"\r" in data:
            return None
        if not self._tail:
            return (data, b"") if end == len(data) else (data[:end], data[end:])
        if b"\r" in self._tail or len(self._tail) + end > self._max_event_bytes:
            return None
        return bytes(self._tail) + data[:end], data[end:]

    def go_on(self, rest: bytes) -> None:
        """Take it that all was passed on but `rest`, which `whole` gave."""
        if rest or self._tail:
            self._tail[:] = rest
            self._searched = max(0, len(rest) - _LONGEST_END)

    def feed(self, data: bytes) -> list[bytes]:
        """Take what was read; return the events that are whole now.

        Raises EventTooLarge; then the splitter is of no further use.
        """
        if self._skips_lf and data:
            self._skips_lf = False
            data = data.removeprefix(b"\n")
        if not self._tail and self._is_one_event(data):
            return [data]
        events: list[bytes] = []
        if self._tail:
            data = self._end_tail(data, events)
        if data:
            self._split(data, events)
        return events

    def _is_one_event(self, data: bytes) -> bool:
        """Say whether this is plainly what most reads are."""
        size = len(data)
        is_whole = 2 <= size <= self._max_event_bytes and data.find(b"\n\n") == size - 2
        return is_whole and b"\r" not in data

    def _end_tail(self, data: bytes, events: list[bytes]) -> bytes:
        """Add to the event that is begun; if that ends it, return what is behind it."""
        tail = self._tail
        tail += data
        end = self._find_end(tail, self._searched)
        if end < 0:
            self._keep_searched()
            return b""
        self._pass(bytes(tail[:end]), events)
        rest = bytes(tail[end:])
        tail.clear()
        self._searched = 0
        return rest

    def _split(self, data: bytes, events: list[bytes]) -> None:
        begin, size = 0, len(data)
        has_cr = b"\r" in data
        while begin < size:
            if has_cr:
                end = self._find_end(data, begin)
            else:
                end = data.find(b"\n\n", begin) + 2
                end = end if end >= 2 else -1
            if end < 0:
                self._tail += data[begin:] if begin else data
                self._keep_searched()
                return
            self._pass(data[begin:end] if begin or end < size else data, events)
            begin = end

    def _find_end(self, data: bytes | bytearray, begin: int) -> int:
        """Say where the first event ends, -1 if that is not known yet."""
        found = _END.search(data, begin)
        if found is None:
            return -1
        end = found.end()
        if end == len(data) and data[-1] == 0x0D:
            if data[-2] == 0x0A:  # half of a CRLF: the other half is on its way
                return -1
            self._skips_lf = True
        return end

    def _pass(self, event: bytes, events: list[bytes]) -> None:
        if len(event) > self._max_event_bytes:
            raise EventTooLarge(self._max_event_bytes)
        events.append(event)

    def _keep_searched(self) -> None:
        if len(self._tail) > self._max_event_bytes:
            raise EventTooLarge(self._max_event_bytes)
        self._searched = max(0, len(self._tail) - _LONGEST_END)
