from collections.abc import Mapping

import pytest

from byoai_agent.proxies import is_loopback, proxy_for, without_credentials
from byoai_shared.errors import ConfigError

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
    assert without_credentials("socks5://user:secret@p:1080") == "socks5://p:1080"


def test_loopback() -> None:
    assert is_loopback("127.9.9.9")
    assert not is_loopback("example.org")
    assert not is_loopback("128.0.0.1")
