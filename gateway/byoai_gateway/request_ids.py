"""The id by which one request is found again in every log between client and model server."""

import secrets
from contextvars import ContextVar
from typing import Final

HEADER: Final = "x-request-id"
MAX_CHARACTERS: Final = 128

_ID_BYTES: Final = 12
_IDS_AT_ONCE: Final = 256
_fresh: Final[list[str]] = []

_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def request_id(given: str) -> str:
    """Take the caller's own id if it is fit to be passed on and logged, or else make one."""
    is_fit = 0 < len(given) <= MAX_CHARACTERS and given.isascii() and given.isprintable()
    return given if is_fit else _new_id()


def _new_id() -> str:
    """Make an id; random digits for many are taken at once, since each call costs a syscall."""
    if not _fresh:
        digits = secrets.token_hex(_ID_BYTES * _IDS_AT_ONCE)
        size = 2 * _ID_BYTES
        _fresh.extend(f"req_{digits[it : it + size]}" for it in range(0, len(digits), size))
    return _fresh.pop()


def work_for(given_id: str) -> None:
    """Say which request the work of this task is for from now on."""
    _current.set(given_id)


def current_request_id() -> str | None:
    """Which request this is done for; None for what the gateway does by itself."""
    return _current.get()
