"""A provider's streamed answer on its way to the client: held until it has begun, then passed on.

Until the commit point, the first event with content, whole events are kept and any failure can
still be answered by asking somebody else. From then on events go through by callback, whole ones
only, so that an answer that breaks can be ended with an error that the client reads. An end
counts only if the model said that it was through: a bare end of the bytes is a truncation.

What is kept, and what the client has not taken of it, counts as the request's (`keeping`).

No task and no wait per event. Before the commit point the caller limits the time (a model may
have to load); behind it, a silence between two reads ends the answer. A client that reads slowly
is not a silence of the provider.
"""

import asyncio
from codecs import BOM_UTF8
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from byoai_gateway.refusals import Refusal
from byoai_gateway.router.classify import (
    connection_lost,
    malformed,
    malformed_http,
    silent,
    truncated,
)
from byoai_gateway.router.dialects import (
    CONTENT,
    DONE,
    MalformedEvent,
    Seen,
    Usage,
    error_event,
    reader,
)
from byoai_gateway.router.endpoints import Dialect
from byoai_gateway.router.failures import AttemptFailed, Failure, FailureKind
from byoai_gateway.router.fast_path import continued_events
from byoai_gateway.router.keeping import FREE_BYTES, Held, no_room
from byoai_gateway.router.sse import EventSplitter, EventTooLarge
from byoai_gateway.router.upstream import ProviderName
from byoai_gateway.router.usage_hiding import may_have_usage, without_null, without_usage
from byoai_shared.http1.deadline import Deadline
from byoai_shared.http1.errors import (
    ConnectionClosed,
    HttpError,
    RemoteProtocolError,
    TruncatedMessage,
)
from byoai_shared.http1.incoming import BodySink, BodySource

MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
"""Images come as one line."""
HELD_BYTES: Final = 4 * 1024 * 1024
"""What is kept in the hope of content; the Responses API repeats tools and instructions there."""
GRACE_S: Final = 1.0
"""How long a provider has to end its message once its answer is done; then nobody waits."""

_WITH_DONE: Final = frozenset({Dialect.CHAT, Dialect.COMPLETION})
_WITH_USAGE_CHUNK: Final = _WITH_DONE
_OF_THE_ACCOUNT: Final = frozenset(
    {FailureKind.CREDITS_SPENT, FailureKind.FORBIDDEN, FailureKind.RATE_LIMITED}
)
"""What the default provider says of the account, which is the operator's."""


class Watcher(Protocol):
    """Follows a stream until its commit point."""

    def show(self, comment: bytes) -> bool:
        """The provider sent an event without content; `comment` if it is one, else empty.

        Returns whether the client was shown it; a comment is then not passed on again.
        """
        ...


class StreamedAnswer:
    """A `BodySink` for the provider's body, and the `BodySource` of the client's.

    Attach it, await `opened`, call `pour_into`, await `ended`. Whoever gives up before that
    aborts the response that it is attached to. `usage` is what the provider has said so far.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        provider: ProviderName,
        explain_error: Callable[[msgspec.Raw], Failure],
        silence_s: float,
        hide_usage: bool,
        held: Held,
        choices: int = 1,
        watcher: Watcher | None = None,
    ) -> None:
        self._dialect = dialect
        self._provider = provider
        self._explain_error = explain_error
        self._silence_s = silence_s
        self._hide_usage = hide_usage and dialect in _WITH_USAGE_CHUNK
        self._choices = choices
        self._finished: set[int] = set()
        self._read = reader(dialect)
        self._continued = continued_events(dialect, hide_usage=self._hide_usage)
        self._is_plain = dialect is Dialect.PLAIN
        self._splitter = EventSplitter(MAX_EVENT_BYTES)
        self._deadline = Deadline(asyncio.get_running_loop(), self._on_silence)
        self._source: BodySource | None = None
        self._sink: BodySink | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._beginning = bytearray()  # what comes before the client may have it
        self._held = held
        self._watcher = watcher
        self._counted = 0  # of what is kept here
        self._has_begun = False  # the commit point is behind us
        self._is_finished = False  # the model said that it is through, with every choice
        self._is_done = False  # nothing that still comes is passed on
        self._is_over = False
        self._is_paused = False  # by the client: the silence is not the provider's
        self._failure: Failure | None = None
        self._is_told = False  # by an event of the provider's own
        self._is_client_gone = False
        self.usage: Usage | None = None

    # ---- for the router

    async def opened(self) -> None:
        """Return at the commit point, or when the whole answer ended properly without one.

        Cancelled, it may be awaited again.

        Raises:
            AttemptFailed: there will be no answer; nothing was passed on.
        """
        while not (self._has_begun or self._is_over):
            await self._wait()
        if self._failure is not None and not self._has_begun:
            raise AttemptFailed(self._failure)

    def pour_into(self, sink: BodySink) -> None:
        """Write what is held, and from now on each event in the turn in which it comes."""
        self._sink = sink
        beginning = bytes(self._beginning)
        self._beginning.clear()
        if self._is_over:
            self._close_sink(sink, beginning)
            return
        if beginning:
            sink.write(beginning)
        self.resume()
        sink.attached(self)
        if self._counted:
            self._count()

    async def ended(self) -> Failure | None:
        """Return when the client's body is finished: None if the answer is whole.

        A failure was told to the client in the stream; where a dialect has no words for it,
        the client's connection was cut. Cancelled, it may be awaited again.

        Raises:
            ConnectionClosed: the client is gone.
        """
        while not self._is_over:
            await self._wait()
        if self._is_client_gone:
            raise ConnectionClosed(request_sent=True)
        if self._failure is not None and self._is_plain and self._sink is not None:
            # Only now: the cut ends whatever the connection still waits for, this too.
            self._sink.fail(TruncatedMessage(self._failure.error.message))
        return self._failure

    def forget(self) -> None:
        """Give back what is kept: there will be no `pour_into`."""
        self._beginning.clear()
        self._held.shrink(self._counted)
        self._counted = 0

    # ---- as the sink of the provider's body

    def attached(self, source: BodySource) -> None:
        """See `BodySink`."""
        self._source = source

    def write(self, data: bytes) -> None:
        """See `BodySink`."""
        if self._is_over:
            return
        out = self._passed(data)
        if out:
            self._put(out)
        if not out or self._counted:
            self._count()
        if self._failure is not None:
            self._end()
        elif self._sink is not None and not self._is_paused:
            self._deadline.set(GRACE_S if self._is_done else self._silence_s)

    def flush(self) -> None:
        """See `BodySink`."""
        if self._sink is not None:
            self._sink.flush()

    def finish(self, data: bytes = b"") -> None:
        """See `BodySink`."""
        if self._is_over:
            return
        out = self._passed(data) if data else b""
        if self._failure is None:
            self._failure = self._last_error()
        if self._failure is None and not self._is_whole():
            self._failure = truncated(self._provider)
        self._end(out)

    def fail(self, error: HttpError) -> None:
        """See `BodySink`."""
        if self._is_over:
            return
        if self._is_plain or not self._is_whole():
            self._failure = self._last_error() or self._explained(error)
        self._end()

    # ---- as the source of the client's body

    def attach(self, sink: BodySink) -> None:
        """See `BodySource`."""
        self.pour_into(sink)

    def detach(self) -> None:
        """See `BodySource`: the client is gone."""
        if not self._is_over:
            self._is_client_gone = True
            self._stop()

    def pause(self) -> None:
        """See `BodySource`."""
        self._is_paused = True
        self._deadline.clear()
        if self._source is not None:
            self._source.pause()

    def resume(self) -> None:
        """See `BodySource`."""
        if self._is_over:
            return
        was_paused, self._is_paused = self._is_paused, False
        if was_paused and self._counted:
            self._count()
        self._deadline.set(GRACE_S if self._is_done else self._silence_s)
        if self._source is not None:
            self._source.resume()

    # ---- events

    def _passed(self, data: bytes) -> bytes:
        """Read what came; return what of it goes on. A failure it tells of is noted."""
        if self._is_done:
            return b""
        if self._is_plain:
            self._has_begun = True
            return data
        if self._has_begun and not self._finished and self._continued is not None:
            found = self._splitter.whole(data)
            passed = None if found is None else self._continued(found[0])
            if found is not None and passed is not None:  # as nearly always
                self._splitter.go_on(found[1])
                return passed
        return self._read_each(data)

    def _read_each(self, data: bytes) -> bytes:
        out: list[bytes] = []
        try:
            for event in self._splitter.feed(data):
                seen = self._read(event)
                if seen is CONTENT and self._has_begun:
                    self._is_finished = False
                    out.append(self._less_usage(event, seen))
                    continue
                if seen.error is not None:
                    out += self._failed(seen, seen.error, event)
                    break
                self._note(seen)
                if not self._is_shown(seen, event):
                    # Behind comments of ours it would no longer stand at the stream's beginning.
                    out.append(self._less_usage(event.removeprefix(BOM_UTF8), seen))
                if seen.is_done:
                    break
        except (MalformedEvent, EventTooLarge) as error:
            self._failure = malformed(self._provider, str(error))
        return out[0] if len(out) == 1 else b"".join(out)

    def _failed(self, seen: Seen, error: msgspec.Raw, event: bytes) -> list[bytes]:
        """Note a failure that an event tells; return the event if the client may have it."""
        self._failure = self._explain_error(error)
        if not (seen.is_ending and self._has_begun) or self._is_reworded(self._failure.kind):
            return []
        self._note(seen)
        self._is_told = True
        return [event]

    def _is_reworded(self, kind: FailureKind) -> bool:
        """Whether the client gets words of ours; providers quote the key that they refuse."""
        is_operators = self._provider is ProviderName.DEFAULT and kind in _OF_THE_ACCOUNT
        return is_operators or kind is FailureKind.KEY_REFUSED

    def _note(self, seen: Seen) -> None:
        """Note what an event says."""
        if seen.has_content:
            self._has_begun = True
            # One of several choices may be through while another goes on.
            self._is_finished = False
        if seen.finished:
            self._finished.update(seen.finished)
            self._is_finished = len(self._finished) >= self._choices
        if seen.is_done:
            self._is_done = True
            self._has_begun |= bool(self._finished)
        if seen.usage is not None:
            self.usage = seen.usage if self.usage is None else self.usage.updated(seen.usage)

    def _less_usage(self, event: bytes, seen: Seen) -> bytes:
        """Return what the client is to have of an event: all but the usage that we asked for."""
        if not (self._hide_usage and may_have_usage(event)):
            return event
        return without_usage(event) if seen.is_usage_only else without_null(event)

    def _last_error(self) -> Failure | None:
        """Return the error that an event tells which the end of the bytes cut off, if it does."""
        begun = b"" if self._is_plain or self._is_done else self._splitter.begun
        try:
            error = self._read(begun + b"\n\n").error if begun else None
        except MalformedEvent:
            return None
        return None if error is None else self._explain_error(error)

    def _is_shown(self, seen: Seen, event: bytes) -> bool:
        """Report an event that is no content yet; return whether the client has all of it now."""
        if self._has_begun or self._watcher is None:
            return False
        is_comment = seen.is_comment and event.startswith(b":")
        return self._watcher.show(event if is_comment else b"") and is_comment

    def _put(self, out: bytes) -> None:
        if self._sink is not None:
            self._sink.write(out)
            return
        self._beginning += out
        if len(self._beginning) > FREE_BYTES:
            self._count()
        if len(self._beginning) > HELD_BYTES and not self._has_begun:
            self._failure = malformed(
                self._provider, "the stream exceeded 4 MiB without producing any content"
            )
        if self._has_begun:
            if self._source is not None:
                self._source.pause()
            self._wake()

    def _count(self) -> None:
        """Count what is kept beyond what is free; what was passed on, until the client took it.

        Asked where nothing is passed on, as in most reads that let an event grow: the others,
        nearly all, cost nothing.
        """
        kept = max(0, len(self._beginning) + self._splitter.kept_bytes - FREE_BYTES)
        if kept < self._counted and self._is_paused:
            return
        try:
            if kept > self._counted:
                self._held.grow(kept - self._counted)
            else:
                self._held.shrink(self._counted - kept)
        except Refusal as refusal:
            self._failure = self._failure or no_room(refusal)
            return
        self._counted = kept

    # ---- the end

    def _is_whole(self) -> bool:
        """Say whether an end now is the end of the answer."""
        if self._is_plain or self._is_finished:
            return True
        return self._is_done and self._has_begun

    def _explained(self, error: HttpError) -> Failure:
        if isinstance(error, RemoteProtocolError) and not isinstance(error, TruncatedMessage):
            return malformed_http(self._provider)
        if self._has_begun or isinstance(error, TruncatedMessage):
            return truncated(self._provider)
        return connection_lost(self._provider)

    def _on_silence(self) -> None:
        if not self._is_whole() or self._is_plain:
            self._failure = silent(self._provider, self._silence_s)
        self._end()

    def _end(self, out: bytes = b"") -> None:
        """Tell the client, or keep it for the client, how the answer ended."""
        if self._sink is None:
            self._beginning += out
        else:
            self._close_sink(self._sink, out)
        self._stop()

    def _close_sink(self, sink: BodySink, out: bytes) -> None:
        # Before `finish`: what it wakes may look.
        self._is_over = True
        if self._failure is None:
            is_short = self._dialect in _WITH_DONE and not self._is_done
            sink.finish(out + DONE if is_short else out)
        elif self._is_plain:
            sink.write(out)
        elif self._is_told:
            sink.finish(out)
        else:
            event = error_event(self._dialect, self._failure.error, self._failure.status)
            sink.finish(out + event)

    def _stop(self) -> None:
        self._is_over = True
        self._deadline.stop()
        source, self._source = self._source, None
        if source is not None:
            source.detach()
        self._wake()

    # ---- waiting

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
