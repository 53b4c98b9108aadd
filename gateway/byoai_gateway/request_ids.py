"""The id by which one request is found again in every log between client and model server."""

import secrets
from contextvars import ContextVar
from typing import Final

HEADER: Final = "x-request-id"
MAX_CHARACTERS: Final = 128

_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def request_id(given: str) -> str:
    """Take the caller's own id if it is fit to be passed on and logged, or else make one."""
    is_fit = 0 < len(given) <= MAX_CHARACTERS and given.isascii() and given.isprintable()
    return given if is_fit else f"req_{secrets.token_hex(12)}"


def work_for(given_id: str) -> None:
    """Say which request the work of this task is for from now on."""
    _current.set(given_id)


def current_request_id() -> str | None:
    """Which request this is done for; None for what the gateway does by itself."""
    return _current.get()
