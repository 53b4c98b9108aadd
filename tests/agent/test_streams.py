import io
import json
from typing import Any

import pytest

from byoai_agent.streams import Doors, LinkStreams
from byoai_shared.http1.head import DEFAULT_LIMITS
from byoai_shared.http1.request import ServerRequest
from byoai_shared.identity import RelayIdentity
from byoai_shared.link.errors import StreamReset
from byoai_shared.logs import configure
from byoai_shared.protocol.errors import ResetCode
from byoai_shared.tls import server_context
from support.links import certificates


class Stream:
    """One that nothing is ever sent on."""

    def fail(self, code: ResetCode) -> None:
        raise AssertionError(f"reset with {code}")


class Silent:
    """The transport of a peer that has not said anything yet."""

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        """Asyncio's; there is nothing to cut."""

    def write(self, data: bytes) -> None:
        raise AssertionError(f"{len(data)} bytes were sent")

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Asyncio's."""


async def never(_request: ServerRequest, _doors: Doors) -> None:
    raise AssertionError("nothing was asked")


@pytest.mark.parametrize(
    ("error", "is_shown"),
    [(StreamReset(ResetCode.CANCELLED), False), (ConnectionResetError("cut"), True)],
)
async def test_a_client_that_leaves_during_the_handshake_is_no_news(
    error: Exception, *, is_shown: bool
) -> None:
    """Users press Stop: an owner who reads the log learns nothing from it, line after line."""
    written = io.StringIO()
    configure(form="json", stream=written)
    made = certificates()
    credentials = made.services.credentials(RelayIdentity("r"))
    doors = Doors(server_context(credentials, client_ca_pem=made.services.pem), ())
    protocol: Any = LinkStreams(never, doors, DEFAULT_LIMITS).accept(Stream())
    protocol.connection_made(Silent())
    protocol.connection_lost(error)
    events = [json.loads(line)["event"] for line in written.getvalue().splitlines()]
    assert events == ["stream.refused"] * is_shown
