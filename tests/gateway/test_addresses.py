import pytest

from byoai_gateway.addresses import ClientAddresses

PROXIES = ["10.0.0.0/8", "fd00::/8"]


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        pytest.param("198.51.100.7", [], "198.51.100.7", id="direct"),
        pytest.param("198.51.100.7", ["203.0.113.1"], "198.51.100.7", id="a liar, direct"),
        pytest.param("10.0.0.1", ["203.0.113.1"], "203.0.113.1", id="behind a proxy"),
        pytest.param("10.0.0.1", ["6.6.6.6, 203.0.113.1"], "203.0.113.1", id="a liar behind one"),
        pytest.param("10.0.0.1", ["6.6.6.6", "203.0.113.1"], "203.0.113.1", id="in two fields"),
        pytest.param("10.0.0.1", ["203.0.113.1, 10.9.9.9"], "203.0.113.1", id="behind two"),
        pytest.param("10.0.0.1", [], "10.0.0.1", id="a proxy that says nothing"),
        pytest.param("10.0.0.1", ["nonsense"], "unknown", id="a proxy that says nonsense"),
        pytest.param(None, [], "unknown", id="no peer"),
        pytest.param("2001:db8:1:2:3::4", [], "2001:db8:1:2::", id="an IPv6 home"),
        pytest.param("fe80::1%eth0", [], "fe80::", id="with a zone"),
        pytest.param("::ffff:198.51.100.7", [], "198.51.100.7", id="mapped"),
        pytest.param("::ffff:10.0.0.1", ["203.0.113.1"], "203.0.113.1", id="mapped proxy"),
    ],
)
def test_who_is_counted(peer: str | None, forwarded: list[str], expected: str) -> None:
    assert ClientAddresses(PROXIES).limit_key(peer, forwarded) == expected


def test_without_trusted_proxies_nobody_is_believed() -> None:
    assert ClientAddresses([]).limit_key("10.0.0.1", ["203.0.113.1"]) == "10.0.0.1"
