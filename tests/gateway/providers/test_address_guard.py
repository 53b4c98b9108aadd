"""Where users' addresses may lead."""

import pytest

from byoai_gateway.providers.address_guard import AddressGuard, AddressRefused
from byoai_gateway.providers.origin import BaseAddress, Origin
from byoai_shared.errors import ConfigError


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "172.15.255.255",
        "172.32.0.1",
        "100.128.0.1",
        "192.0.1.1",
        "2606:4700::1111",
        "2a00:1450:4001::1",
        "::ffff:8.8.8.8",
    ],
)
def test_public_addresses_pass(address: str) -> None:
    AddressGuard().check(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:a9fe:a9fe",
        "::ffff:0:7f00:1",
        "64:ff9b::7f00:1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:0:4136:e378::1",
        "2001:20::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2620:4f:8000::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "2606:4700::1111%1",
    ],
)
def test_every_other_address_is_refused(address: str) -> None:
    with pytest.raises(AddressRefused, match="private or reserved"):
        AddressGuard().check(address)


@pytest.mark.parametrize("address", ["", "localhost", "127.1", "0177.0.0.1", "2130706433"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(AddressRefused):
        AddressGuard().check(address)


def test_the_operator_may_allow_networks() -> None:
    guard = AddressGuard(("10.0.0.0/8", "fd00::/8"))
    guard.check("10.1.2.3")
    guard.check("::ffff:10.1.2.3")
    guard.check("fd00::1")
    with pytest.raises(AddressRefused):
        guard.check("127.0.0.1")


def test_what_is_no_network_cannot_be_allowed() -> None:
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1/8"):
        AddressGuard(("10.0.0.1/8",))


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("https://llm.example.com", "llm.example.com", 443, ""),
        ("https://LLM.Example.COM./v1/", "llm.example.com", 443, "/v1"),
        ("https://llm.example.com:8443/a%20b/v1", "llm.example.com", 8443, "/a%20b/v1"),
        ("https://8.8.8.8/v1", "8.8.8.8", 443, "/v1"),
        ("https://[2606:4700:0::1111]:8000", "2606:4700::1111", 8000, ""),
        ("https://bücher.example.com", "xn--bcher-kva.example.com", 443, ""),
        ("https://faß.example.com", "xn--fa-hia.example.com", 443, ""),
    ],
)
def test_an_https_address_is_read(url: str, host: str, port: int, path: str) -> None:
    expected = BaseAddress(Origin("https", host, port), path)
    assert AddressGuard().check_url(url) == expected


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://llm.example.com", "https://"),
        ("HTTP://llm.example.com", "https://"),
        ("//llm.example.com", "https://"),
        ("llm.example.com", "https://"),
        ("file:///etc/passwd", "https://"),
        ("https://", "host name"),
        ("https:///v1", "host name"),
        ("https://user:pass@llm.example.com", "user name"),
        ("https://llm.example.com@127.0.0.1", "user name"),
        ("https://llm.example.com?x=1", "no \\?"),
        ("https://llm.example.com/v1?", "no \\?"),
        ("https://llm.example.com/v1#", "no #"),
        ("https://llm.example.com\\@127.0.0.1", "characters"),
        ("https://llm.example.com/\r\nhost: x", "characters"),
        (" https://llm.example.com", "characters"),
        ("https://llm.exa\tmple.com", "characters"),
        ("https://llm.example.com/" + "a" * 2048, "longer"),
        ("https://llm.example.com:0", "port"),
        ("https://llm.example.com:22", "port"),
        ("https://llm.example.com:65536", "port"),
        ("https://llm.example.com:٤٤٣", "host name"),
        ("https://llm.example.com:443:443", "host name"),
        ("https://llm.example.com/../admin", "path"),
        ("https://llm.example.com/v1/%2e%2E/admin", "path"),
        ("https://llm.example.com/%zz", "path"),
        ("https://llm.example.com/é", "path"),
        ("https://-llm.example.com", "host name"),
        ("https://llm..example.com", "host name"),
        ("https://llm%2eexample.com", "host name"),
        ("https://llm_1.example.com", "host name"),
        ("https://" + "a" * 64 + ".example.com", "host name"),
        ("https://[::1", "URL"),
        ("https://[fe80::1%25eth0]", "private or reserved"),
        ("https://[2606:4700::1%1]", "private or reserved"),
        ("https://[::1]", "private or reserved"),
        ("https://[::ffff:127.0.0.1]", "private or reserved"),
        ("https://[64:ff9b::7f00:1]", "private or reserved"),
        ("https://127.0.0.1", "private or reserved"),
        ("https://127.0.0.1.", "private or reserved"),
        ("https://169.254.169.254/latest", "private or reserved"),
        ("https://127.1", "IP address"),
        ("https://0177.0.0.1", "IP address"),
        ("https://0x7f.0.0.1", "IP address"),
        ("https://0x7f000001", "IP address"),
        ("https://2130706433", "IP address"),
        ("https://example.com.0x", "IP address"),
        ("https://１２７.0.0.1", "private or reserved"),  # noqa: RUF001 -- digits that are not
        ("https://127。0。0。1", "private or reserved"),
        ("https://①②⑦.0.0.1", "private or reserved"),
        ("https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "private or reserved"),
        ("https://localhost", "private or reserved"),
        ("https://localhost.", "private or reserved"),
        ("https://LocalHost:8443", "private or reserved"),
        ("https://a.localhost", "private or reserved"),
        ("https://postgres", "private or reserved"),
        ("https://printer.local", "private or reserved"),
        ("https://metadata.google.internal", "private or reserved"),
        ("https://router.home.arpa", "private or reserved"),
    ],
)
def test_any_other_address_is_refused_with_a_reason(url: str, sentence: str) -> None:
    with pytest.raises(AddressRefused, match=sentence):
        AddressGuard().check_url(url)


def test_inner_names_may_be_used_where_a_network_is_allowed() -> None:
    address = AddressGuard(("10.0.0.0/8",)).check_url("https://gpu.internal:8443/v1")
    assert address.origin == Origin("https", "gpu.internal", 8443)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://gpu.example.com/v1/chat/completions", "https://gpu.example.com/v1"),
        ("https://gpu.example.com/v1/models/", "https://gpu.example.com/v1"),
        ("https://gpu.example.com:8443/api/generate", "https://gpu.example.com:8443/v1"),
    ],
)
def test_an_address_of_an_endpoint_is_refused_with_the_right_one(url: str, expected: str) -> None:
    with pytest.raises(AddressRefused, match=f"use {expected}$"):
        AddressGuard().check_url(url)
