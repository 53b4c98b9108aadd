"""Links by way of a proxy, as from a company network."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio

from byoai_shared.link.errors import LinkRefused
from byoai_shared.link.session import LinkSession, connect
from byoai_shared.protocol.control import Hello, Role
from byoai_shared.tls import Credentials, client_context
from support.links import AGENT
from support.pipes import Pipe, Pipes
from support.proxy import proxy_to
from support.relays import Rig, end, relaying


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncGenerator[Rig]:
    async with relaying(tmp_path) as rig:
        yield rig


async def dial(
    rig: Rig, proxy: str, credentials: Credentials, pipes: Pipes | None = None
) -> LinkSession:
    return await connect(
        rig.agents_url,
        ssl_context=client_context(
            server_ca_pem=rig.certificates.services.pem, credentials=credentials
        ),
        hello=Hello(role=Role.AGENT, node=AGENT.agent_id, instance="run-1", epoch=1),
        accept=pipes,
        proxy=proxy,
    )


@pytest.mark.parametrize("kind", ["http", "socks5"])
async def test_a_link_goes_by_the_proxy_and_carries_streams(rig: Rig, kind: str) -> None:
    port = int(rig.agents_url.rpartition(":")[2])
    pipes, credentials = Pipes(), rig.certificates.of(AGENT)
    gateway, _ = await rig.gateway()
    async with proxy_to(port) as (proxy, address):
        agent = await dial(rig, f"{kind}://{address}", credentials, pipes)
        assert len(proxy.asked) == 1
        await agent.authenticate(rig.token(credentials))
        asking = Pipe()
        await gateway.open_stream(AGENT.tunnel_id, asking)
        asking.transport.write(b"through the proxy")
        (answering,) = pipes.made
        await answering.until(lambda: answering.received == b"through the proxy")
        await end(agent)
    await end(gateway)


async def test_a_proxy_that_says_no_is_a_refusal_without_its_password(rig: Rig) -> None:
    async with proxy_to(1) as (proxy, address):
        proxy.answer = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"
        with pytest.raises(
            LinkRefused, match="did not accept the user name and password"
        ) as refused:
            await dial(rig, f"http://user:hidden@{address}", rig.certificates.of(AGENT))
        assert "hidden" not in str(refused.value)


async def test_a_proxy_that_is_not_there_is_a_refusal(rig: Rig) -> None:
    async with proxy_to(1) as (_, address):
        pass
    with pytest.raises(LinkRefused, match="proxy"):
        await dial(rig, f"socks5://{address}", rig.certificates.of(AGENT))
