"""The client's half of a request: its answer begins once, and says honestly who gives it.

A comment may begin a stream before it is known who will answer. What the head can then no longer
say stands in comments before the first event.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

import msgspec

from byoai_gateway.router.dialects import error_event
from byoai_gateway.router.endpoints import Dialect
from byoai_gateway.router.error_details import members
from byoai_gateway.router.error_headers import provider_request_id
from byoai_gateway.router.failures import Failure
from byoai_gateway.router.messages_error import messages_error
from byoai_gateway.router.replay import as_events
from byoai_gateway.router.upstream import Call, ProviderName
from byoai_shared.api_errors import ApiError
from byoai_shared.http1.framing import end_to_end
from byoai_shared.http1.head import Headers, ResponseHead, header
from byoai_shared.http1.outgoing import OutgoingBody
from byoai_shared.http1.pieces import Pieces
from byoai_shared.http1.request import ServerRequest

KEEP_ALIVE: Final = b": keep-alive\n\n"
# nginx holds streams back otherwise.
_UNBUFFERED: Final[Headers] = ((b"x-accel-buffering", b"no"),)
_EVENT_STREAM: Final[Headers] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    *_UNBUFFERED,
)
_OF_EVENTS: Final = frozenset(name for name, _ in _EVENT_STREAM)
_NOT_OURS_TO_PASS: Final = frozenset(
    {
        b"alt-svc",
        b"anthropic-organization-id",  # whose account it is
        b"clear-site-data",
        b"content-length",
        b"date",
        b"link",
        b"location",
        b"nel",
        b"openai-organization",
        b"openai-project",
        b"refresh",
        b"report-to",
        b"reporting-endpoints",
        b"request-id",
        b"server",
        b"set-cookie",
        b"strict-transport-security",
        b"via",
        b"www-authenticate",
        b"x-reproxy-url",
        b"x-request-id",
        b"x-should-retry",
    }
)
_NOT_OURS_PREFIXES: Final = (
    b"access-control-",
    b"x-byoai-",
    # Orders to a proxy before us: a provider could have it hand out what only it may read.
    b"x-accel-",
    b"x-envoy-",
    b"x-lighttpd-",
    b"x-sendfile",
)
_VISIBLE: Final = "!\"#$&'()*+,/:;<=>?@[\\]^`{|}"
"""ASCII that a header holds unchanged; other characters of a name are percent-encoded."""
_SHOULD_RETRY: Final = b"x-should-retry"
_ANTHROPICS: Final = re.compile(r"/v1/messages(?:[/?]|$)")


@lru_cache(maxsize=1024)
def _header_value(model: str) -> bytes:
    """The same few names come with every answer; none is longer than 200 characters."""
    return quote(model, safe=_VISIBLE).encode()


@dataclass(slots=True)
class Tale:
    """Who was asked for one request, and why somebody else was."""

    attempts: int = 0
    provider: ProviderName | None = None
    fallback_reason: str | None = None
    model: str | None = None
    """The name that the provider was asked for."""

    def headers(self) -> Headers:
        """As the head of an answer tells it."""
        told: list[tuple[bytes, bytes]] = [(b"x-byoai-attempts", b"%d" % self.attempts)]
        if self.provider is not None:
            told.append((b"x-byoai-provider", self.provider.value.encode()))
        if self.fallback_reason is not None:
            told.append((b"x-byoai-fallback-reason", self.fallback_reason.encode()))
        if self.model:
            told.append((b"x-byoai-model", _header_value(self.model)))
        return tuple(told)

    def comments(self) -> bytes:
        """As the beginning of a stream tells it."""
        return b"".join(b": %b: %b\n" % pair for pair in self.headers()) + b"\n"


@dataclass(slots=True)
class Answering:
    """The answer to one client."""

    request: ServerRequest
    call: Call
    tale: Tale
    _early: OutgoingBody | None = None

    @property
    def is_begun(self) -> bool:
        """Whether a comment has begun a stream already: then only events may follow."""
        return self._early is not None

    def keep_alive(self) -> None:
        """Show the client that its request is being worked on; this begins its stream."""
        if self._early is None:
            head = ResponseHead(HTTPStatus.OK, _EVENT_STREAM + self._request_id())
            try:
                self._early = self.request.start_response(head)
            except RuntimeError:
                # The client left in this very turn; whoever waits for the answer is told next.
                return
        self._early.write(KEEP_ALIVE)

    def show_comment(self, comment: bytes) -> bool:
        """Pass a provider's comment on, or our own for any other sign of life (`comment` is empty).

        Only where a stream was begun to keep it alive; returns whether it was. A client that reads
        too slowly for them misses some.
        """
        if self._early is None:
            return False
        if not self._early.is_paused:
            self._early.write(comment or KEEP_ALIVE)
        return True

    def stream(self, upstreams: ResponseHead) -> OutgoingBody:
        """Begin a stream, or go on with the one that comments have begun."""
        if self._early is None:
            head = self.head(upstreams)
            unbuffered = ResponseHead(head.status, head.headers + _UNBUFFERED)
            return self.request.start_response(unbuffered, hold_head=True)
        self._early.write(self.tale.comments())
        return self._early

    def whole(self, upstreams: ResponseHead, body: bytes) -> None:
        """Answer in one piece, or with events that say it all, if it is events that are due."""
        dialect, head = self.call.endpoint.dialect, self.head(upstreams)
        if self._early is None and not (self.call.is_stream and dialect is not Dialect.PLAIN):
            self.request.respond_as_taken(head, body)
            return
        events = as_events(dialect, body, hide_usage=not self.call.wants_usage)
        if self._early is not None:
            Pieces(self.tale.comments() + events).attach(self._early)
            return
        kept = tuple(pair for pair in head.headers if pair[0] not in _OF_EVENTS)
        self.request.respond_as_taken(ResponseHead(head.status, _EVENT_STREAM + kept), events)

    def fail(self, failure: Failure, *, may_be_repeated: bool) -> None:
        """Tell the client why there is no answer.

        Whether it asks again is its own policy's to decide, unless a repeat would be useless.
        """
        if self._early is not None:
            event = error_event(self.call.endpoint.dialect, failure.error, failure.status)
            self._early.finish(self.tale.comments() + event)
            return
        headers: Headers = (
            (b"content-type", b"application/json"),
            *self._request_id(),
            *self.tale.headers(),
            *failure.headers,
        )
        if not may_be_repeated:
            headers = (*(it for it in headers if it[0] != _SHOULD_RETRY), (_SHOULD_RETRY, b"false"))
        says_when = header(headers, b"retry-after") or header(headers, b"retry-after-ms")
        if failure.retry_after_s is not None and not says_when:
            headers = (*headers, (b"retry-after", b"%d" % max(1, round(failure.retry_after_s))))
        body = error_body(self.request.head.target, failure.error, failure.status)
        self.request.respond(failure.status, headers, body)

    def head(self, upstreams: ResponseHead) -> ResponseHead:
        """Make the head of an answer out of the provider's."""
        kept = tuple(
            pair
            for pair in end_to_end(upstreams.headers)
            if pair[0] not in _NOT_OURS_TO_PASS and not pair[0].startswith(_NOT_OURS_PREFIXES)
        )
        own = self._request_id() + provider_request_id(upstreams.headers) + self.tale.headers()
        return ResponseHead(upstreams.status, kept + own)

    def _request_id(self) -> Headers:
        return request_id_headers(self.request.head.target, self.call.request_id)


def is_anthropics(target: str) -> bool:
    """Whether the clients of the call with this target are Anthropic's."""
    return _ANTHROPICS.match(target) is not None


def request_id_headers(target: str, request_id: str) -> Headers:
    """Our id of a request; under Anthropic's name, too, where its clients read it."""
    value = request_id.encode()
    ours = (b"x-request-id", value)
    return (ours, (b"request-id", value)) if is_anthropics(target) else (ours,)


def error_body(target: str, error: ApiError, status: int) -> bytes:
    """An error as the clients of the call with this target read it."""
    if is_anthropics(target):
        return msgspec.json.encode(messages_error(error, status))
    return msgspec.json.encode({"error": members(error)})
