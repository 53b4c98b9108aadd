"""An attacker's agent: a real certificate, token and link, and no respect for the protocol."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from struct import pack
from typing import Final

from byoai_shared.link.session import LinkSession, connect
from byoai_shared.protocol import events as ev
from byoai_shared.protocol.control import Hello, Role
from byoai_shared.protocol.frames import DATA, FrameType
from byoai_shared.tls import client_context

from .place import Place

CREDIT_OF_ONE: Final = "CREDIT of 1"
DATA_OF_ONE: Final = "DATA of 1"
BATCH: Final = 5_000


class HostileAgent:
    """One link. It takes streams only if asked to, and sends what no honest agent would."""

    def __init__(self, session: LinkSession, *, takes_streams: bool) -> None:
        self.session = session
        self.opened: list[int] = []
        """The streams that gateways opened, in order."""
        self.was_reset: set[int] = set()
        if not takes_streams:
            session._handlers[ev.StreamOpened] = self._leave_open
        receive = session.message_received

        def received(message: bytes) -> None:
            self._note(message)
            receive(message)

        session.message_received = received  # type: ignore[method-assign] # to look, not to change

    def _leave_open(self, event: ev.StreamOpened) -> None:
        """Neither accept it nor refuse it."""

    def _note(self, message: bytes) -> None:
        at = 0
        while at < len(message):
            word, stream_id = int.from_bytes(message[at : at + 4]), message[at + 4 : at + 8]
            if word & 0xFF == FrameType.OPEN:
                self.opened.append(int.from_bytes(stream_id))
            elif word & 0xFF == FrameType.RESET:
                self.was_reset.add(int.from_bytes(stream_id))
            at += 8 + (word >> 8)

    async def stream(self, number: int) -> int:
        """Wait for the `number`-th stream and return its id."""
        while len(self.opened) <= number:
            self._require_link()
            await asyncio.sleep(0.002)
        return self.opened[number]

    async def reset(self, stream_id: int) -> None:
        """Wait until a gateway has reset the stream."""
        while stream_id not in self.was_reset:
            self._require_link()
            await asyncio.sleep(0.002)

    async def send(self, kind: str, stream_id: int, count: int, most_s: float) -> int:
        """Send a frame again and again; return how many left within the time, or before the end."""
        frame = frames(stream_id)[kind]
        sent = 0
        outbox = self.session.outbox
        end = time.monotonic() + most_s
        while sent < count and not self.session.closed.done() and time.monotonic() < end:
            if not outbox:
                for _ in range(min(BATCH, count - sent)):
                    outbox.put_stream(stream_id, *frame)
                self.session._flush()
                sent += BATCH
            await asyncio.sleep(0.001)
        outbox.clear()
        return min(sent, count)

    def _require_link(self) -> None:
        if self.session.closed.done():
            raise self.session.closed.result()


def frames(stream_id: int) -> dict[str, tuple[bytes, bytes]]:
    """Return the smallest frames that do something, as header and payload."""
    return {
        CREDIT_OF_ONE: (pack(">II", 4 << 8 | FrameType.CREDIT, stream_id), pack(">I", 1)),
        DATA_OF_ONE: (pack(">II", 1 << 8 | DATA, stream_id), b"x"),
    }


@asynccontextmanager
async def linked(
    place: Place, *, takes_streams: bool, token: str = ""
) -> AsyncGenerator[HostileAgent]:
    """Link the attacker's agent to the relay while entered; with a new token if none is given."""
    account = place.account
    ca_pem = account.membership.services_ca_pem.encode()
    session = await connect(
        account.membership.relays[0],
        ssl_context=client_context(server_ca_pem=ca_pem, credentials=account.credentials),
        hello=Hello(
            role=Role.AGENT,
            node=account.identity.agent_id,
            instance=secrets.token_hex(8),
            epoch=1,
            max_streams=4096,
        ),
        accept=lambda _stream: asyncio.Protocol(),
    )
    try:
        agent = HostileAgent(session, takes_streams=takes_streams)
        await session.authenticate(token or await account.token())
        await place.stack.online(place.mallory)
        yield agent
    finally:
        session.abort()
        await session.closed
