"""What the operating system's errors mean to a person."""

import errno
import socket

_MEANINGS = {
    errno.ECONNREFUSED: "nobody listens there",
    errno.EHOSTUNREACH: "there is no way to that host",
    errno.ENETUNREACH: "there is no way to its network; is this host online?",
    errno.ETIMEDOUT: "no answer in time",
    errno.ECONNRESET: "the connection was cut",
}


def in_words(error: OSError) -> str:
    """Say what an error of a connection means, without numbers where they help nobody."""
    if isinstance(error, socket.gaierror):
        return "its name cannot be resolved; check the address and DNS"
    meaning = _MEANINGS.get(error.errno) if error.errno is not None else None
    if meaning is not None:
        return meaning
    if str(error).startswith("Multiple exceptions") and f"Errno {errno.ECONNREFUSED}" in str(error):
        return _MEANINGS[errno.ECONNREFUSED]  # a name with several addresses
    if isinstance(error, TimeoutError):
        return _MEANINGS[errno.ETIMEDOUT]
    return error.strerror or str(error)
