"""What one attempt leaves behind when its provider's answer is given up."""

import asyncio
import time

import pytest

from byoai_gateway.provider_config import DefaultProviderSection, RouterSection
from byoai_gateway.providers.compatible import DefaultProvider
from byoai_gateway.providers.outbound import Outbound
from byoai_gateway.router.answering import Answering, Tale
from byoai_gateway.router.attempt import Attempt
from byoai_gateway.router.endpoints import CHAT
from byoai_gateway.router.failures import AttemptFailed
from byoai_gateway.router.keeping import FREE_BYTES, Budget
from byoai_gateway.router.ticker import Ticker
from byoai_gateway.router.upstream import Call
from byoai_shared.http1.client import ClientConnection
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.server import ServerConnection
from support.wires import RecordingTransport, turns

ASKED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
SIZE = 2 * FREE_BYTES
COMPRESSED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n"
    b"Content-Length: %d\r\n\r\n" % (2 * SIZE)
) + bytes(SIZE)


class Watched(Budget):
    """Knows how much was in use at once."""

    peak = 0

    def take(self, user_id: str, size: int, *, held: int) -> None:
        super().take(user_id, size, held=held)
        self.peak = max(self.peak, self.used)


async def test_bytes_that_may_not_come_behind_comments_are_no_longer_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection = ClientConnection()
    transport = RecordingTransport(connection)
    outbound = Outbound(1.0)

    async def acquire(*_: object) -> ClientConnection:
        return connection

    monkeypatch.setattr(Outbound, "acquire", acquire)
    section = DefaultProviderSection(base_url="http://127.0.0.1:1/v1", model="m")
    upstream = DefaultProvider(section, RouterSection(), outbound).upstream(is_fallback=False)
    budget = Watched(100 * SIZE)
    ended: asyncio.Future[tuple[str | None, int]] = asyncio.get_running_loop().create_future()

    async def handle(request: ServerRequest) -> None:
        with budget.hold("alice", 1000) as held:
            call = Call(CHAT, request.head, b"{}", {}, None, True, False, "id-1", held)
            answering = Answering(request, call, Tale())
            answering.keep_alive()
            attempt = Attempt(
                upstream,
                answering,
                upstream.prepare(call),
                time.monotonic() + 10,
                time.monotonic,
                Ticker(answering.keep_alive, 1.0, 1.0),
                lambda: None,
            )
            with pytest.raises(AttemptFailed) as caught:
                await attempt.run()
            ended.set_result((caught.value.failure.error.code, held.size))
            answering.fail(caught.value.failure, may_be_repeated=True)

    client = ServerConnection(handle)
    RecordingTransport(client)
    client.data_received(ASKED)
    await turns()
    connection.data_received(COMPRESSED)
    async with asyncio.timeout(50):
        assert await ended == ("malformed_answer", 1000)
    assert (budget.peak, budget.used) == (1000 + SIZE - FREE_BYTES, 0)
    assert transport.is_aborted
    outbound.close()
