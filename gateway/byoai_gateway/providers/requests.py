"""A user's request as a provider gets it: made anew, with nothing that is only between us.

Whose session it is, by which proxies it came and which keys the client holds stays here: a
provider learns its own key and what to answer. A body is made anew only where it must differ.
"""

from collections.abc import Collection
from typing import Final

import msgspec

from byoai_gateway.router.endpoints import BodyKind, Dialect
from byoai_gateway.router.upstream import Call, Prepared
from byoai_shared.http1.framing import end_to_end
from byoai_shared.http1.head import Headers, RequestHead
from byoai_shared.http1.incoming import IncomingBody

PASSED: Final = frozenset(
    {
        b"accept",
        b"anthropic-beta",
        b"anthropic-dangerous-direct-browser-access",
        b"anthropic-version",
        b"content-encoding",
        b"content-type",
        b"idempotency-key",
        b"openai-beta",
        b"traceparent",
        b"tracestate",
        b"user-agent",
        # What the official clients say of themselves and of the attempt.
        b"x-stainless-arch",
        b"x-stainless-async",
        b"x-stainless-custom-poll-interval",
        b"x-stainless-helper",
        b"x-stainless-helper-method",
        b"x-stainless-lang",
        b"x-stainless-os",
        b"x-stainless-package-version",
        b"x-stainless-poll-helper",
        b"x-stainless-raw-response",
        b"x-stainless-read-timeout",
        b"x-stainless-retry-count",
        b"x-stainless-runtime",
        b"x-stainless-runtime-version",
        b"x-stainless-stream-helper",
        b"x-stainless-timeout",
    }
)
"""What providers of every kind are to know, by name: a prefix would pass what nobody has looked at.

Nothing else: proxies in front of us tell us more of users than a list of what to leave out could
name. The operator adds names with `router.request_headers`."""
_JSON: Final = (b"content-type", b"application/json")
_IDENTITY: Final = (b"accept-encoding", b"identity")
LOOP_HEADER: Final = b"cdn-loop"
"""RFC 8586: who passed a request on, so that it is known again if it comes back."""
LOOP_TOKEN: Final = b"byoai"
_PASSED_BY_US: Final = (LOOP_HEADER, LOOP_TOKEN)
_USAGE: Final = msgspec.Raw(b'{"include_usage":true}')
_TRUE: Final = msgspec.Raw(b"true")
_NULL: Final = b"null"
_options: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def is_loop(headers: Headers) -> bool:
    """Whether a gateway, this or another, made this request: one that asks itself never ends."""
    for name, value in headers:  # noqa: SIM110 -- `any` costs every request twice as much
        if name == LOOP_HEADER and _names_us(value):
            return True
    return False


def passed_headers(named: Collection[str]) -> frozenset[bytes]:
    """Return the names of all headers that pass, with those that the operator named."""
    return PASSED.union(name.encode() for name in named)


def end_to_end_headers(headers: Headers, passed: frozenset[bytes] = PASSED) -> Headers:
    """What of a client's headers a provider may see."""
    return tuple(pair for pair in end_to_end(headers) if pair[0] in passed)


def provider_body(
    call: Call, model: str | None, *, without: Collection[str] = (), is_rebuilt: bool = False
) -> bytes | IncomingBody:
    """Make the body that asks for `model`, and for a stream's usage; `without` some fields.

    `is_rebuilt` says that JSON is never passed on as it came: then no field is in it twice, and
    a provider cannot read another value than the router did.
    """
    if call.endpoint.body is BodyKind.NONE:
        return b""
    fields = call.fields
    if fields is None:
        return call.body
    changed: dict[str, msgspec.Raw] = {}
    if model is not None and model != call.model:
        changed["model"] = msgspec.Raw(msgspec.json.encode(model))
    if _lacks_usage(call):
        changed["stream_options"] = _with_usage(fields.get("stream_options"))
    if not changed and not is_rebuilt and not any(name in fields for name in without):
        return call.body
    kept = {name: value for name, value in fields.items() if name not in without}
    return msgspec.json.encode(kept | changed)


def prepared(
    call: Call,
    *,
    target: str,
    own: Headers,
    model: str | None,
    without: Collection[str] = (),
    is_rebuilt: bool = False,
    passed: frozenset[bytes] = PASSED,
) -> Prepared:
    """Make a request for a provider; `own` are its headers (host, key, request id and such).

    `passed` names the headers of the client's that go with it.

    Only JSON can be made to ask for another model: an upload asks for what stands in it.
    A rebuilt body is called what it is: a reader that goes by Content-Type could otherwise take
    it for a form (urlencoded), or for text in another charset (UTF-7), with another model in it.
    """
    body = provider_body(call, model, without=without, is_rebuilt=is_rebuilt)
    kept = end_to_end_headers(call.head.headers, passed)
    if is_rebuilt and call.fields is not None:
        kept = (*(pair for pair in kept if pair[0] != b"content-type"), _JSON)
    headers: Headers = (*own, _IDENTITY, _PASSED_BY_US, *kept)
    if isinstance(body, IncomingBody) and isinstance(body.framing, int):
        # Its length is known though not all of it has come; many servers take no chunks.
        headers = (*headers, (b"content-length", b"%d" % body.framing))
    asked = model if call.fields is not None else call.model
    head = RequestHead(call.head.method, target, headers)
    return Prepared(head, body, asked, added_usage=_lacks_usage(call))


def _names_us(value: bytes) -> bool:
    tokens = (part.partition(b";")[0] for part in value.split(b","))
    return any(token.strip(b" \t").lower() == LOOP_TOKEN for token in tokens)


def _lacks_usage(call: Call) -> bool:
    has_option = call.endpoint.dialect in {Dialect.CHAT, Dialect.COMPLETION}
    is_wanted = call.is_stream and not call.wants_usage
    return has_option and is_wanted and call.may_add_usage and call.fields is not None


def _with_usage(options: msgspec.Raw | None) -> msgspec.Raw:
    if options is None or bytes(options) == _NULL:
        return _USAGE
    merged = _options.decode(options) | {"include_usage": _TRUE}
    return msgspec.Raw(msgspec.json.encode(merged))
