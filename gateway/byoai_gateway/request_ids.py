"""The id by which one request is found again in every log between client and model server."""

import secrets
from typing import Final

HEADER: Final = "x-request-id"
MAX_CHARACTERS: Final = 128


def request_id(given: str) -> str:
    """Take the caller's own id if it is fit to be passed on and logged, or else make one."""
    is_fit = 0 < len(given) <= MAX_CHARACTERS and given.isascii() and given.isprintable()
    return given if is_fit else f"req_{secrets.token_hex(12)}"
