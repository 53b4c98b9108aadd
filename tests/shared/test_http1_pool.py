import asyncio

import pytest

from byoai_shared.http1.client import ClientConnection, Response
from byoai_shared.http1.errors import ConnectionClosed
from byoai_shared.http1.head import RequestHead
from byoai_shared.http1.pool import Pool
from support.loop_clock import NEVER_S, pass_time, skip
from support.pools import idle, lease, warm
from support.wires import RecordingTransport, turns

GET = RequestHead("GET", "/", ((b"host", b"a"),))
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Connector:
    """Makes connections to nowhere and remembers them."""

    def __init__(self) -> None:
        self.made: list[tuple[str, RecordingTransport]] = []
        self.error: Exception | None = None

    async def __call__(self, key: str) -> ClientConnection:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        connection = ClientConnection()
        self.made.append((key, RecordingTransport(connection)))
        return connection

    def idle(self, pool: Pool[str], key: str) -> int:
        """How many of a key are kept."""
        kept = {connection.transport for connection in idle(pool)}
        return sum(made_for == key and made in kept for made_for, made in self.made)

    def transport(self, index: int = -1) -> RecordingTransport:
        return self.made[index][1]


async def exchange(connection: ClientConnection, answer: bytes = OK) -> None:
    task = asyncio.ensure_future(connection.request(GET))
    await turns(2)
    connection.data_received(answer)
    await (await task).read(10)


@pytest.fixture
def connector() -> Connector:
    return Connector()


async def test_a_connection_is_reused_by_its_key_only(connector: Connector) -> None:
    pool = Pool(connector)
    first = await pool.acquire("a")
    await exchange(first)
    pool.release("a", first)
    assert connector.idle(pool, "a") == 1
    other = await pool.acquire("b")
    assert other is not first
    assert await pool.acquire("a") is first
    assert connector.idle(pool, "a") == 0
    assert await pool.acquire("a") is not first
    pool.close()


async def test_the_last_used_is_taken_first(connector: Connector) -> None:
    pool = Pool(connector)
    first, second = await pool.acquire("a"), await pool.acquire("a")
    pool.release("a", first)
    pool.release("a", second)
    assert await pool.acquire("a") is second
    assert await pool.acquire("a") is first


async def test_only_a_fresh_connection_is_taken_without_waiting(connector: Connector) -> None:
    pool = Pool(connector)
    assert pool.take_fresh("a") is None
    connection = await pool.acquire("a")
    pool.release("a", connection)
    assert pool.take_fresh("a") is connection
    assert pool.take_fresh("a") is None
    pool.release("a", connection)
    skip(1.1)
    assert pool.take_fresh("a") is None
    assert await pool.acquire("a") is connection


@pytest.mark.parametrize("how", ["eof", "bytes", "lost"])
async def test_an_idle_connection_that_stirs_is_never_given_out(
    connector: Connector, how: str
) -> None:
    pool = Pool(connector)
    first = await pool.acquire("a")
    await exchange(first)
    pool.release("a", first)
    if how == "eof":
        first.eof_received()
    elif how == "bytes":
        first.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    else:
        first.connection_lost(None)
    assert await pool.acquire("a") is not first


async def test_a_lost_idle_connection_is_forgotten_at_once(connector: Connector) -> None:
    pool = Pool(connector)
    connection = await pool.acquire("a")
    pool.release("a", connection)
    connection.connection_lost(None)
    assert connector.idle(pool, "a") == 0


async def fail_in_mid_exchange(pool: Pool[str], tasks: list[asyncio.Task[Response]]) -> None:
    async with lease(pool, "a") as connection:
        tasks.append(asyncio.create_task(connection.request(GET)))
        await turns()
        raise ZeroDivisionError


async def test_a_connection_that_may_not_be_used_again_is_cut_on_release(
    connector: Connector,
) -> None:
    pool = Pool(connector)
    async with lease(pool, "a") as connection:
        await exchange(connection, b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert connector.idle(pool, "a") == 0
    tasks: list[asyncio.Task[Response]] = []
    with pytest.raises(ZeroDivisionError):
        await fail_in_mid_exchange(pool, tasks)
    assert connector.transport().is_aborted
    with pytest.raises(ConnectionClosed):
        await tasks[0]
    assert connector.idle(pool, "a") == 0


async def test_a_failed_connect_is_passed_on_and_keeps_nothing(connector: Connector) -> None:
    pool = Pool(connector)
    connector.error = OSError("refused")
    with pytest.raises(OSError, match="refused"):
        async with lease(pool, "a"):
            pass
    assert connector.idle(pool, "a") == 0


async def test_no_more_than_the_maximum_is_kept(connector: Connector) -> None:
    pool = Pool(connector, max_idle=2)
    connections = [await pool.acquire("a") for _ in range(3)]
    for connection in connections:
        pool.release("a", connection)
    assert connector.idle(pool, "a") == 2
    assert connector.transport(2).is_closing()
    pool.close()


async def test_what_is_idle_too_long_is_closed(connector: Connector) -> None:
    pool = Pool(connector, idle_timeout_s=NEVER_S)
    old = await pool.acquire("a")
    young = await pool.acquire("a")
    pool.release("a", old)
    await pass_time(0.6 * NEVER_S)
    pool.release("a", young)
    await pass_time(0.6 * NEVER_S)
    assert connector.transport(0).is_closing()
    assert not connector.transport(1).is_closing()
    await pass_time(0.6 * NEVER_S)
    assert connector.transport(1).is_closing()
    assert connector.idle(pool, "a") == 0


async def test_a_dropped_key_loses_its_connections_and_no_other(connector: Connector) -> None:
    pool = Pool(connector)
    await warm(pool, "a", 2)
    await warm(pool, "b")
    assert (connector.idle(pool, "a"), connector.idle(pool, "b")) == (2, 1)
    pool.drop("a")
    assert (connector.idle(pool, "a"), connector.idle(pool, "b")) == (0, 1)
    assert [t.is_closing() for _, t in connector.made] == [True, True, False]
    pool.close()


async def test_idle_connections_that_somebody_leaves_are_closed_and_no_others(
    connector: Connector,
) -> None:
    pool = Pool(connector)
    await warm(pool, "a", 2)
    await warm(pool, "b")
    unwanted = {connector.transport(0), connector.transport(2)}
    pool.close_idle(lambda connection: connection.transport in unwanted)
    assert (connector.idle(pool, "a"), connector.idle(pool, "b")) == (1, 0)
    assert [t.is_closing() for _, t in connector.made] == [True, False, True]
    pool.close()


async def test_a_closed_pool_keeps_nothing(connector: Connector) -> None:
    pool = Pool(connector)
    await warm(pool, "a")
    used = await pool.acquire("b")
    pool.close()
    pool.close()
    pool.release("b", used)
    assert all(t.is_closing() for _, t in connector.made)
    assert connector.idle(pool, "b") == 0


async def test_a_request_that_loses_the_race_with_the_peers_close_says_it_was_sent(
    connector: Connector,
) -> None:
    pool = Pool(connector)
    await warm(pool, "a")
    connection = await pool.acquire("a")
    assert connection.exchanges == 0
    await exchange(connection)
    task = asyncio.ensure_future(connection.request(GET))
    await turns()
    connection.eof_received()
    connection.connection_lost(None)
    with pytest.raises(ConnectionClosed) as caught:
        await task
    assert caught.value.request_sent
    assert connection.exchanges == 2, "so the caller knows that it was a used one"


async def test_a_connection_whose_end_is_still_in_the_socket_is_not_given_out() -> None:
    closing: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        closing.append(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()

    async def connect(key: str) -> ClientConnection:
        _, connection = await loop.create_connection(ClientConnection, "127.0.0.1", port)
        return connection

    pool = Pool(connect)
    async with lease(pool, "a") as first, asyncio.timeout(50):
        await (await first.request(GET)).read(10)
    first.idle_since -= 10  # it has been idle for long
    # The peer's FIN arrives in the kernel, while this task does not let the loop look.
    sock = closing[0].get_extra_info("socket")
    with sock.dup() if hasattr(sock, "dup") else sock as raw:
        raw.shutdown(2)
    assert first.is_reusable
    second = await pool.acquire("a")
    assert second is not first
    second.abort()
    closing[0].close()
    server.close()
    await turns()
    await server.wait_closed()
