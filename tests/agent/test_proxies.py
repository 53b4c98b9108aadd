import base64
import re
from collections.abc import Mapping

import pytest

from byoai_agent.proxies import is_loopback, proxy_for
from byoai_shared.errors import ConfigError
from byoai_shared.proxy import ProxyFailed, connect_through, read_proxy
from support.proxy import proxy_to

RELAY = "wss://relay.example:443"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        ({"https_proxy": "http://p:3128"}, "http://p:3128"),
        ({"HTTPS_PROXY": "p:3128"}, "http://p:3128"),
        ({"HTTP_PROXY": "http://p:3128"}, None),
        ({"ALL_PROXY": "socks5://p:1080"}, "socks5://p:1080"),
        ({"ALL_PROXY": "socks5h://u:pw@p:1080"}, "socks5://u:pw@p:1080"),
        ({"ALL_PROXY": "socks5://p:1", "HTTPS_PROXY": "http://p:2"}, "http://p:2"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "relay.example"}, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".example"}, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "other.example"}, "http://p:1"),
    ],
)
def test_the_environments_convention(
    environ: Mapping[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(RELAY) == expected
    assert proxy_for("https://relay.example:443") == expected


def test_a_network_in_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://p:1")
    monkeypatch.setenv("NO_PROXY", "junk/x, 10.0.0.0/8")
    assert proxy_for("wss://10.1.2.3:443") is None
    assert proxy_for("wss://11.1.2.3:443") == "http://p:1"


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "a.localhost"])
def test_this_host_is_never_reached_by_a_proxy(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://p:1")
    assert proxy_for(f"wss://{host}:443") is None


def test_a_proxy_we_cannot_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "quic://p:1")
    with pytest.raises(ConfigError, match=r"'quic' proxy.*HTTPS_PROXY"):
        proxy_for(RELAY)


def test_a_password_is_not_shown() -> None:
    proxy = read_proxy("socks5://user:secret@p:1081")
    assert proxy.shown == "socks5://p:1081"
    assert "secret" not in repr(proxy)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        # The first three are inputs that ended the agent with a traceback.
        ("http://user:pa#ss@10.99.0.1:3128", "# as %23"),
        ("http://", "has no host"),
        ("http://10.99.0.1:99999", "a number from 1 to 65535"),
        ("http://10.99.0.1:0", "a number from 1 to 65535"),
        ("http://user:1#ss@10.99.0.1:3128", "# as %23"),
        ("http://user:pa/ss@10.99.0.1:3128", "/ as %2F"),
        ("http://user:pa?ss@10.99.0.1:3128", "# as %23"),
        ("http://user:pass@10.99.0.1:3128/path", "behind its port"),
        ("http://10.99.0.1:port", "a number from 1 to 65535"),
        ("http://10.99.0.1 :3128", "a blank or a line break"),
        ("http://user:pass@[::1:3128", "unclosed bracket"),
        ("http://[fe80::zz]:3128", "IPv6 address"),
        ("http://pro xy:3128", "a blank"),
        ("http://-:3128", "invalid host name"),
        ("http://a%3Ab:pass@10.99.0.1:3128", "a colon in its user name"),
        ("socks5://user:p%C3%A4ss@10.99.0.1:1080", "SOCKS cannot express"),
        ("user:pass://10.99.0.1", "'unknown' proxy"),
    ],
)
def test_an_address_that_is_none_is_explained_without_its_password(
    address: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", address)
    with pytest.raises(ConfigError) as refused:
        proxy_for(RELAY)
    assert sentence in str(refused.value)
    assert "HTTPS_PROXY" in str(refused.value)
    assert not any(part in str(refused.value) for part in ("pa#", "pass@", "ss@", "p%C3"))


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("http://proxy.example", "proxy.example", 80),
        ("HTTP://PROXY.example:3128/", "proxy.example", 3128),
        (" http://proxy.example:3128 ", "proxy.example", 3128),
        ("socks5h://[2001:db8::1]", "2001:db8::1", 1080),
        ("http://[fe80::1%eth0]:3128", "fe80::1%eth0", 3128),
        ("http://münchen.example:3128", "xn--mnchen-3ya.example", 3128),
        ("http://user:p@ss@10.99.0.1:3128", "10.99.0.1", 3128),
    ],
)
def test_an_address_as_people_write_it(
    address: str, host: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", address)
    found = proxy_for(RELAY)
    assert found is not None
    server = read_proxy(found).server
    assert (server.host, server.port) == (host, port)


@pytest.mark.parametrize("no_proxy", ["[2001:db8::1]", "2001:db8::/32", "x,2001:DB8:0::1"])
def test_an_ipv6_address_in_no_proxy(no_proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://p:1")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert proxy_for("wss://[2001:db8::1]:443") is None
    assert proxy_for("wss://[2001:db9::1]:443") == "http://p:1"


@pytest.mark.parametrize(
    ("userinfo", "expected"),
    [
        # The first is the input whose bytes were sent as Latin-1.
        ("corp%5Cada:p%C3%A4ssw%C3%B6rd", b"corp\\ada:p\xc3\xa4ssw\xc3\xb6rd"),
        ("ada:p\N{LATIN SMALL LETTER A WITH DIAERESIS}ss", b"ada:p\xc3\xa4ss"),
        ("ada:p%E4ss", b"ada:p\xe4ss"),
        ("ada:100%25", b"ada:100%"),
        ("ada", b"ada:"),
        ("ada:p@s:s", b"ada:p@s:s"),
    ],
)
async def test_a_proxy_gets_the_bytes_that_were_percent_encoded(
    userinfo: str, expected: bytes
) -> None:
    async with proxy_to(1) as (proxy, address):
        way = read_proxy(f"http://{userinfo}@{address}")
        (await connect_through(way, "relay.example", 443)).close()
    found = re.search(rb"Proxy-Authorization: Basic (\S+)", proxy.asked[0])
    assert found is not None
    assert base64.b64decode(found[1]) == expected


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"HTTP/1.1 407 Authentication Required\r\n\r\n", "user:password@proxy"),
        (
            b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\n\r\n<html>",
            "to relay.example: 502 Bad Gateway",
        ),
        (b"HTTP/1.1 403 \x1b[2J\r\n\r\n", "to relay.example: 403 [2J;"),
        (b"SSH-2.0-OpenSSH_9.7\r\n\r\n", "did not let us through"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://portal/\r\n\r\n", "302 Found"),
    ],
)
async def test_what_a_proxy_answers_in_place_of_a_connection(answer: bytes, sentence: str) -> None:
    async with proxy_to(1) as (proxy, address):
        proxy.answer = answer
        with pytest.raises(ProxyFailed) as failed:
            await connect_through(read_proxy(f"http://a:b@{address}"), "relay.example", 443)
    assert sentence in str(failed.value)


async def test_a_proxy_that_is_not_there() -> None:
    async with proxy_to(1) as (_, address):
        pass
    with pytest.raises(ProxyFailed, match=r"cannot be reached; check HTTPS_PROXY.*NO_PROXY"):
        await connect_through(read_proxy(f"http://{address}"), "relay.example", 443)


def test_loopback() -> None:
    assert is_loopback("127.9.9.9")
    assert not is_loopback("example.org")
    assert not is_loopback("128.0.0.1")
