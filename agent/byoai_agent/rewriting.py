"""The request as the model server sees it: built anew, never passed through.

Pure. What came through the tunnel speaks to the agent; the model server gets a request of the
agent's own making. Host is rewritten because Ollama answers 403 to a foreign one, Origin and
Referer are dropped for the same reason, cookies and the caller's keys because they are not
the model server's business, and everything that describes the hop before because it is no
longer true. Names are lower-case, as `byoai_shared.http1` reads them.
"""

from typing import Final

from byoai_shared.http1.framing import end_to_end
from byoai_shared.http1.head import Headers, ResponseHead
from byoai_shared.secret import Secret

_FOREIGN: Final = frozenset(
    {
        b"host",
        b"origin",
        b"referer",
        b"cookie",
        b"authorization",
        b"api-key",
        b"x-api-key",
        b"x-goog-api-key",
        b"forwarded",
        b"via",
    }
)
_FOREIGN_PREFIXES: Final = (b"proxy-", b"sec-", b"x-forwarded-", b"x-real-", b"x-byoai-")
# A model server has no business setting cookies in, or opening doors to, somebody's browser.
_NOT_FOR_THE_CALLER: Final = frozenset({b"set-cookie", b"server", b"alt-svc"})
_NOT_FOR_THE_CALLER_PREFIXES: Final = (b"access-control-", b"x-byoai-")


def upstream_headers(headers: Headers, host: str, key: Secret | None) -> Headers:
    """The header fields for the model server at `host`; Content-Length stays if it was there."""
    kept = [(b"host", host.encode("ascii"))]
    kept += [
        (name, value)
        for name, value in end_to_end(headers)
        if name not in _FOREIGN and not name.startswith(_FOREIGN_PREFIXES)
    ]
    if key is not None:
        kept.append((b"authorization", b"Bearer " + key.reveal().encode("utf-8")))
    return tuple(kept)


def without_length(headers: Headers) -> Headers:
    """The fields without Content-Length, for a body that is sent in one piece."""
    return tuple(pair for pair in headers if pair[0] != b"content-length")


def caller_head(head: ResponseHead) -> ResponseHead:
    """The head of the model server's answer as it goes back."""
    kept = tuple(
        (name, value)
        for name, value in end_to_end(head.headers)
        if name not in _NOT_FOR_THE_CALLER and not name.startswith(_NOT_FOR_THE_CALLER_PREFIXES)
    )
    return ResponseHead(head.status, kept, head.reason)
