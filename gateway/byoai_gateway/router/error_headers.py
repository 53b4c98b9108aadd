"""The headers of a provider's answer that clients get, and what they say.

On an error: when to come back, how much is left, how long it took. Everywhere: the provider's own
id of the request, under a name that does not claim to be ours.
"""

import math
import re
import time
from email.utils import parsedate_to_datetime
from typing import Final

from byoai_shared.http1.head import Headers, header

LONGEST_S: Final = 86_400.0
"""A provider that asks for more is not believed."""
PROVIDER_REQUEST_ID: Final = b"x-byoai-provider-request-id"
_MOST_HEADERS: Final = 24
_LIMIT: Final = re.compile(
    rb"x-ratelimit-(?:limit|remaining|reset)(?:-[a-z]{1,32}){0,3}"
    rb"|anthropic-ratelimit-(?:[a-z0-9]{1,32}-){1,4}(?:limit|remaining|reset|status)"
    rb"|openai-processing-ms|x-should-retry"
)
_VALUE: Final = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]{0,62}[\x21-\x7e])?")
_ANTHROPICS_ID: Final = b"request-id"
_REQUEST_IDS: Final = frozenset({_ANTHROPICS_ID, b"x-request-id"})
_REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")


def retry_after_s(headers: Headers, now: float | None = None) -> float | None:
    """How long to wait, from `retry-after-ms` or `retry-after` (RFC 9110, 10.2.3).

    `now` is Unix time, for a date; None is the present. At least 0, at most a day; None if there
    is neither or it cannot be read.
    """
    milliseconds = _number(header(headers, b"retry-after-ms"))
    if milliseconds is not None:
        return _bounded(milliseconds / 1000)
    value = header(headers, b"retry-after")
    seconds = _number(value)
    if seconds is not None:
        return _bounded(seconds)
    moment = _date(value)
    return None if moment is None else _bounded(moment - (time.time() if now is None else now))


def headers_for_client(headers: Headers) -> Headers:
    """The headers of an error answer that its client gets, as they came; no others, and not many.

    `retry-after` and `retry-after-ms` are among them if they can be read.
    """
    kept = [pair for pair in headers if _LIMIT.fullmatch(pair[0]) and _VALUE.fullmatch(pair[1])]
    return (*kept[:_MOST_HEADERS], *_waits(headers), *provider_request_id(headers))


def forbids_repeat(headers: Headers) -> bool:
    """Say whether a provider asks client libraries not to repeat the request."""
    return header(headers, b"x-should-retry") == b"false"


def provider_request_id(headers: Headers) -> Headers:
    """The provider's own id of a request as `x-byoai-provider-request-id`; nothing without one."""
    found: Headers = ()
    for name, value in headers:
        if name in _REQUEST_IDS and _REQUEST_ID.fullmatch(value):
            found = ((PROVIDER_REQUEST_ID, value),)
            if name == _ANTHROPICS_ID:
                break
    return found


def _waits(headers: Headers) -> Headers:
    milliseconds, value = (header(headers, it) for it in (b"retry-after-ms", b"retry-after"))
    found: Headers = ()
    if value is not None and (_is_wait(value) or _date(value) is not None):
        found = ((b"retry-after", value),)
    if milliseconds is not None and _is_wait(milliseconds):
        found = (*found, (b"retry-after-ms", milliseconds))
    return found


def _is_wait(value: bytes) -> bool:
    number = _number(value)
    return number is not None and number >= 0 and _VALUE.fullmatch(value) is not None


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_S)


def _number(value: bytes | None) -> float | None:
    try:
        number = float(value) if value is not None else None
    except ValueError:
        return None
    return None if number is None or not math.isfinite(number) else number


def _date(value: bytes | None) -> float | None:
    try:
        return parsedate_to_datetime((value or b"").decode("ascii")).timestamp()
    except (ValueError, OverflowError):
        return None
