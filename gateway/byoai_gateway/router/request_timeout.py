"""The time that a client gives its own request: the header `x-byoai-timeout`."""

import re
from http import HTTPStatus
from typing import Final

from byoai_gateway.refusals import Refusal
from byoai_shared.http1.head import RequestHead

HEADER: Final = b"x-byoai-timeout"
_SECONDS: Final = re.compile(rb"[0-9]{1,9}(?:\.[0-9]{1,3})?")


def request_timeout_s(head: RequestHead, longest_s: float) -> float | None:
    """Return how many seconds a request may take until its answer begins, if it says so.

    A longer time than the operator allows (`longest_s`) becomes that.

    Raises:
        Refusal: the value is not a number of seconds greater than 0.
    """
    value = head.header(HEADER)
    if value is None:
        return None
    seconds = float(value) if _SECONDS.fullmatch(value) else 0.0
    if not seconds:
        raise Refusal(
            HTTPStatus.BAD_REQUEST,
            "invalid_header",
            "x-byoai-timeout must be a number of seconds greater than 0, for example 900",
            param=HEADER.decode(),
        )
    return min(seconds, longest_s)
