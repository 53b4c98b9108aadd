import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import aiohttp
import pytest

from byoai_shared.ops import Page, ops_pages, serve_pages


@dataclass
class Watched:
    """A program with an ops listener, and its reason for not being ready."""

    address: str = ""
    reason: str = ""
    warnings: tuple[str, ...] = ()

    async def ask(self, path: str, method: str = "GET") -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as client,
            client.request(method, f"http://{self.address}{path}") as response,
        ):
            return response.status, await response.text()


@pytest.fixture
async def watched() -> AsyncGenerator[Watched]:
    program = Watched()

    async def why_not() -> str:
        return program.reason

    pages = ops_pages(
        why_not,
        lambda: Page(b"things 3\n", "text/plain; version=1.0"),
        warnings=lambda: program.warnings,
    )
    async with serve_pages("127.0.0.1", 0, pages) as program.address:
        yield program


async def test_it_lives(watched: Watched) -> None:
    assert await watched.ask("/healthz") == (200, "ok\n")


async def test_it_says_why_it_is_not_ready(watched: Watched) -> None:
    assert await watched.ask("/readyz") == (200, "ready\n")
    watched.reason = "the oven is cold"
    assert await watched.ask("/readyz") == (503, "not ready: the oven is cold\n")


async def test_warnings_follow_whether_it_is_ready_or_not(watched: Watched) -> None:
    watched.warnings = ("no salt", "no pepper")
    more = "warning: no salt\nwarning: no pepper\n"
    assert await watched.ask("/readyz") == (200, "ready\n" + more)
    watched.reason = "the oven is cold"
    assert await watched.ask("/readyz") == (503, "not ready: the oven is cold\n" + more)


async def test_metrics_are_made_when_they_are_asked_for(watched: Watched) -> None:
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"http://{watched.address}/metrics?x=1") as response,
    ):
        assert await response.text() == "things 3\n"
        assert response.headers["content-type"] == "text/plain; version=1.0"


async def test_there_is_nothing_else(watched: Watched) -> None:
    status, text = await watched.ask("/v1/models")
    assert status == 404
    assert "/readyz" in text
    assert (await watched.ask("/healthz/"))[0] == 404


async def test_nothing_can_be_done_there(watched: Watched) -> None:
    assert (await watched.ask("/metrics", "POST"))[0] == 405
    assert await watched.ask("/metrics", "HEAD") == (200, "")


async def test_a_page_that_hangs_does_not_outlive_the_listener(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("byoai_shared.ops._DRAIN_S", 0.0)
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hanging() -> Page:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with serve_pages("127.0.0.1", 0, {"/": hanging}) as address:
        host, port = address.split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await begun.wait()
    assert ended.is_set()
    writer.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("10.0.0.7:7481", 200),
        ("[::1]:7481", 200),
        ("LOCALHOST", 200),
        ("localhost.:7481", 200),
        ("metrics.inside", 200),
        ("attacker.example", 421),
        ("localhost.attacker.example:7481", 421),
        ("127.0.0.1.attacker.example", 421),
        ("[attacker.example]", 421),
        ("", 421),
    ],
)
async def test_a_page_of_another_host_cannot_have_a_browser_read_this_one(
    host: str, status: int
) -> None:
    async def page() -> Page:
        return Page(b"what operators see\n")

    async with (
        serve_pages("127.0.0.1", 0, {"/": page}, ("Metrics.Inside",)) as address,
        aiohttp.ClientSession() as client,
        client.get(f"http://{address}/", headers={"Host": host}) as response,
    ):
        assert response.status == status
        assert ("operators" in await response.text()) is (status == 200)


async def test_an_ipv6_address_is_written_with_brackets() -> None:
    try:
        async with serve_pages("::1", 0, {}) as address:
            assert address.startswith("[::1]:")
    except OSError:
        pytest.skip("there is no IPv6 here")
