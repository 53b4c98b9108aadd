"""What the headers of a provider's error answer say: when to come back, and how much is left."""

import math
import re
import time
from email.utils import parsedate_to_datetime
from typing import Final

from byoai_shared.http1.head import Headers, header

LONGEST_S: Final = 86_400.0
"""A provider that asks for more is not believed."""
_MOST_HEADERS: Final = 16
_RATE_LIMIT: Final = re.compile(rb"x-ratelimit-(?:limit|remaining|reset)(?:-[a-z]{1,32}){0,3}")
_VALUE: Final = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]{0,62}[\x21-\x7e])?")


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


def rate_limits(headers: Headers) -> Headers:
    """The headers that tell a client how much it may still ask; no others, and not many."""
    kept = [
        (name, value)
        for name, value in headers
        if _RATE_LIMIT.fullmatch(name) and _VALUE.fullmatch(value)
    ]
    return tuple(kept[:_MOST_HEADERS])


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
