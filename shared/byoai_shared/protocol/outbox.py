"""What leaves a link, and in which order.

Control frames, PING and PONG, RESET and CREDIT overtake everything; then the streams take
turns, one frame each, so that a token of one never waits behind an upload of another.

CREDIT that waits is one frame for each stream, however often it was granted: a peer cannot
fill the outbox of a link that others use with small grants. A control frame that reports a state
replaces the one that reported an earlier state of the same thing and has not left.
"""

from collections import deque
from typing import Final

from byoai_shared.protocol.frames import (
    HEADER_BYTES,
    MAX_CREDIT,
    MAX_MESSAGE_BYTES,
    encode,
    encode_u32,
)
from byoai_shared.protocol.frames import FrameType as Type

_CONTROL, _PING, _RESET = range(3)
_CREDIT_FRAME_BYTES: Final = HEADER_BYTES + 4
_URGENT_CLASS: Final = {
    **{int(member): _CONTROL for member in Type if member < Type.DATA},
    int(Type.PING): _PING,
    int(Type.PONG): _PING,
    int(Type.RESET): _RESET,
}

Key = tuple[str, ...]
"""What a frame that reports a state is about."""
Piece = tuple[bytes, bytes | memoryview]
"""A frame on its way: header and payload, not yet joined."""


class Outbox:
    """The frames of one link that wait to be sent."""

    __slots__ = (
        "_credits",
        "_latest",
        "_ring",
        "_stream_bytes",
        "_streams",
        "_urgent",
        "_urgent_count",
        "queued_bytes",
    )

    def __init__(self) -> None:
        self.queued_bytes = 0
        """Bytes of all waiting frames, headers included."""
        # Lists, not deques: they are short, and a relay keeps thousands of idle outboxes.
        self._urgent: tuple[list[bytes | Key], ...] = ([], [], [])
        self._latest: dict[Key, bytes] = {}
        """The frames whose keys are among the urgent ones."""
        self._credits: dict[int, int] = {}
        """Credit to grant, by stream."""
        self._urgent_count = 0
        """Frames that wait and are not a stream's: what is urgent, and credits."""
        self._ring: deque[int] = deque()
        self._streams: dict[int, deque[Piece]] = {}
        self._stream_bytes: dict[int, int] = {}

    def __bool__(self) -> bool:
        return self.queued_bytes > 0

    def put_urgent(self, frame_type: int, stream_id: int, payload: bytes = b"") -> None:
        """Queue a frame that is not DATA or FIN, ahead of every stream's bytes."""
        self._put(frame_type, encode(frame_type, stream_id, payload))

    def has_latest(self, key: Key) -> bool:
        """Whether a frame of this key still waits."""
        return key in self._latest

    def put_latest(self, frame_type: int, key: Key, payload: bytes) -> None:
        """Queue a control frame in the place of the one of this key that still waits, if any."""
        frame = encode(frame_type, 0, payload)
        waiting = self._latest.get(key)
        if waiting is None:
            self._urgent[_URGENT_CLASS[frame_type]].append(key)
            self._urgent_count += 1
        else:
            self.queued_bytes -= len(waiting)
        self._latest[key] = frame
        self.queued_bytes += len(frame)

    def put_number(self, frame_type: int, stream_id: int, number: int) -> None:
        """Queue an ACCEPT, RESET or CREDIT. A RESET drops what the stream still had to say."""
        if frame_type == Type.CREDIT:
            self._put_credit(stream_id, number)
            return
        if frame_type == Type.RESET:
            self.drop(stream_id)
        self._put(frame_type, encode_u32(frame_type, stream_id, number))

    def _put_credit(self, stream_id: int, number: int) -> None:
        waiting = self._credits.get(stream_id)
        if waiting is None:
            self._urgent_count += 1
            self.queued_bytes += _CREDIT_FRAME_BYTES
            self._credits[stream_id] = number
        else:
            self._credits[stream_id] = min(waiting + number, MAX_CREDIT)

    def _put(self, frame_type: int, frame: bytes) -> None:
        self._urgent[_URGENT_CLASS[frame_type]].append(frame)
        self._urgent_count += 1
        self.queued_bytes += len(frame)

    def put_stream(self, stream_id: int, header: bytes, payload: bytes | memoryview) -> None:
        """Queue a DATA or FIN frame of a stream, behind the stream's earlier ones."""
        size = HEADER_BYTES + len(payload)
        queue = self._streams.get(stream_id)
        if queue is None:
            self._streams[stream_id] = deque(((header, payload),))
            self._stream_bytes[stream_id] = size
            self._ring.append(stream_id)
        else:
            queue.append((header, payload))
            self._stream_bytes[stream_id] += size
        self.queued_bytes += size

    def drop(self, stream_id: int) -> bool:
        """Forget the waiting frames of a stream; whether there were any, a FIN among them."""
        if self._streams.pop(stream_id, None) is None:
            return False
        self.queued_bytes -= self._stream_bytes.pop(stream_id)
        self._ring.remove(stream_id)
        return True

    def clear(self) -> None:
        """Forget everything that waits: nobody will take it."""
        self.queued_bytes = self._urgent_count = 0
        for queue in self._urgent:
            queue.clear()
        self._latest.clear()
        self._credits.clear()
        self._ring.clear()
        self._streams.clear()
        self._stream_bytes.clear()

    def stream_bytes(self, stream_id: int) -> int:
        """Bytes of a stream that still wait, headers included."""
        return self._stream_bytes.get(stream_id, 0)

    @property
    def urgent_bytes(self) -> int:
        """Bytes of waiting frames that are not DATA or FIN."""
        return self.queued_bytes - sum(self._stream_bytes.values())

    def largest_stream(self) -> tuple[int, int] | None:
        """The stream with the most bytes waiting, as (stream id, bytes)."""
        if not self._stream_bytes:
            return None
        return max(self._stream_bytes.items(), key=lambda item: item[1])

    def take(self, limit: int = MAX_MESSAGE_BYTES) -> bytes:
        """Remove and join as many frames as fit one message; empty when none waits."""
        parts: list[bytes | memoryview] = []
        size = self._take_urgent(parts, limit) if self._urgent_count else 0
        ring = self._ring
        streams = self._streams
        while ring and not self._urgent_count:
            stream_id = ring[0]
            queue = streams[stream_id]
            header, payload = queue[0]
            grown = size + HEADER_BYTES + len(payload)
            if grown > limit:
                break
            parts.append(header)
            parts.append(payload)
            if len(queue) == 1:
                ring.popleft()
                del streams[stream_id]
                del self._stream_bytes[stream_id]
            else:
                queue.popleft()
                self._stream_bytes[stream_id] -= grown - size
                ring.rotate(-1)
            size = grown
        self.queued_bytes -= size
        return b"".join(parts)

    def _take_urgent(self, parts: list[bytes | memoryview], limit: int) -> int:
        size = 0
        for queue in self._urgent:
            taken = 0
            for entry in queue:
                frame = entry if isinstance(entry, bytes) else self._latest[entry]
                if size + len(frame) > limit:
                    break
                if not isinstance(entry, bytes):
                    del self._latest[entry]
                parts.append(frame)
                size += len(frame)
                taken += 1
            self._urgent_count -= taken
            is_full = taken < len(queue)
            del queue[:taken]
            if is_full:
                return size
        while self._credits and size + _CREDIT_FRAME_BYTES <= limit:
            stream_id = next(iter(self._credits))
            parts.append(encode_u32(Type.CREDIT, stream_id, self._credits.pop(stream_id)))
            size += _CREDIT_FRAME_BYTES
            self._urgent_count -= 1
        return size
