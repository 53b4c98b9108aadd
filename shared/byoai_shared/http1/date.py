"""The field `Date` (RFC 9110 section 6.6.1): when a message was made, to the second."""

from email.utils import formatdate
from functools import lru_cache

DATE = b"date"


@lru_cache(maxsize=2)
def http_date(second: int) -> bytes:
    """Return a moment in Unix seconds as an HTTP date; cheap for as long as a second lasts."""
    return formatdate(second, usegmt=True).encode("ascii")
