"""Where a socket listens, as people and log lines say it."""

import socket
from typing import Any, Protocol


class Listening(Protocol):
    """A socket, or what stands for one."""

    def getsockname(self) -> Any:  # Any: what it is depends on the family, as socket has it
        """Return the address that it is bound to."""
        ...


def address_of(listener: "Listening | socket.socket") -> str:
    """Return `host:port`, with brackets around an IPv6 address."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
