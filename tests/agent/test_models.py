from typing import Any

import pytest

from byoai_agent.models import (
    Catalogue,
    NoSuchModel,
    Upstream,
    parse_listing,
    parse_target,
)
from byoai_shared.errors import ConfigError
from byoai_shared.protocol.control import UpstreamHealth
from byoai_shared.secret import Secret


def upstream(
    port: int, *models: str, is_up: bool | None = True, is_ollama: bool = False
) -> Upstream:
    target = parse_target(f"http://127.0.0.1:{port}")
    entries: tuple[dict[str, Any], ...] = tuple({"id": name} for name in models)
    return Upstream(target, is_up=is_up, is_ollama=is_ollama, models=entries)


@pytest.mark.parametrize(
    ("url", "expected", "authority"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("localhost:11434", "http://localhost:11434", "localhost:11434"),
        ("http://gpu.lan/llm/v1", "http://gpu.lan/llm", "gpu.lan"),
        ("https://gpu.lan", "https://gpu.lan", "gpu.lan"),
        ("http://[::1]:8000", "http://[::1]:8000", "[::1]:8000"),
        ("HTTP://GPU.LAN:8000/V1", "http://gpu.lan:8000/V1", "gpu.lan:8000"),
        ("gpu.lan", "http://gpu.lan", "gpu.lan"),
        ("http://gpu.lan.:80", "http://gpu.lan.", "gpu.lan."),
        ("http://[fe80::1%eth0]:8000", "http://[fe80::1%eth0]:8000", "[fe80::1]:8000"),
        ("http://münchen.lan", "http://xn--mnchen-3ya.lan", "xn--mnchen-3ya.lan"),
        ("http://gpu_1.lan:443", "http://gpu_1.lan:443", "gpu_1.lan:443"),
    ],
)
def test_addresses_as_people_write_them(url: str, expected: str, authority: str) -> None:
    target = parse_target(url)
    assert (target.url, target.authority) == (expected, authority)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x",
        "http://",
        "http://x:99999",
        "http://u:p@x",
        "http://x/?key=1",
        "",
        "http://u:p@x:99999",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError) as failed:
        parse_target(url)
    assert "u:p" not in str(failed.value)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://x:0", "a number from 1 to 65535"),
        ("http://x:65536", "a number from 1 to 65535"),
        ("http://x:http", "a number from 1 to 65535"),
        ("http:// x", "a blank"),
        ("http://x y:80", "a blank"),
        ("http://[::1:80", "unclosed bracket"),
        ("http://::1:80", "a number from 1 to 65535"),
        ("http://[::zz]", "IPv6 address"),
        ("http://a_b!c", "invalid host name"),
        ("ws://x", "must begin with http:// or https://"),
        ("https:///v1", "has no host"),
        ("http://x/münchen", "other than ASCII"),
        ("http://x/v1#y", "no user, password or query"),
    ],
)
def test_an_address_that_is_none_is_explained(url: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as failed:
        parse_target(url)
    assert sentence in str(failed.value)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://127.0.0.1:8000/v1/chat/completions", "write http://127.0.0.1:8000/v1$"),
        ("http://127.0.0.1:8000/v1/models", "write http://127.0.0.1:8000/v1$"),
        ("127.0.0.1:11434/api/chat", "write http://127.0.0.1:11434/v1$"),
        ("http://127.0.0.1 :8000", "blank"),
        ("http://127.0.0.1:8000/v1\n", "line break"),
    ],
)
def test_an_address_that_is_no_base_url_is_refused_with_the_right_one(
    url: str, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_target(url)


@pytest.mark.parametrize("key", ["two words", "line\nbreak", ""])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="the key of the upstream") as refused:
        parse_target("http://x", Secret(key))
    assert not key or key not in str(refused.value)


def test_a_target_does_not_show_its_key() -> None:
    target = parse_target("http://x", Secret("hidden"))
    assert "hidden" not in repr(target)
    assert hash(target) == hash(parse_target("http://x"))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"object": "list", "data": [{"id": "a"}, {"id": "b"}]}', ["a", "b"]),
        (b'{"object": "list", "data": null}', []),
        (b'{"data": [{"id": "a"}, {"id": 5}, {"name": "c"}]}', ["a"]),
        (b'{"models": []}', None),
        (b'{"data": 5}', None),
        (b"[]", None),
        (b"<html>", None),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
    ],
)
def test_listings(body: bytes, expected: list[str] | None) -> None:
    found = parse_listing(body)
    assert (None if found is None else [entry["id"] for entry in found]) == expected


def test_one_server_gets_everything_unread() -> None:
    only = upstream(1, "a")
    catalogue = Catalogue([only])
    assert not catalogue.model_decides
    assert catalogue.route(None) is only
    assert catalogue.route("an-alias") is only


def test_several_servers_are_told_apart_by_model() -> None:
    first, second = upstream(1, "a", "both"), upstream(2, "b", "both")
    catalogue = Catalogue([first, second])
    assert catalogue.model_decides
    assert catalogue.route("a") is first
    assert catalogue.route("b") is second
    assert catalogue.route("both") is first


def test_a_server_that_is_up_is_preferred() -> None:
    first, second = upstream(1, "both", is_up=False), upstream(2, "both")
    assert Catalogue([first, second]).route("both") is second


def test_a_model_of_a_server_that_is_down_is_still_its_own() -> None:
    down, up = upstream(1, "a", is_up=False), upstream(2, "b")
    assert Catalogue([down, up]).route("a") is down


@pytest.mark.parametrize("model", ["c", None])
def test_several_servers_and_no_such_model(model: str | None) -> None:
    catalogue = Catalogue([upstream(1, "a"), upstream(2, "b")])
    assert isinstance(catalogue.route(model), NoSuchModel)


def test_no_server_at_all() -> None:
    assert Catalogue().route("a") is None
    assert Catalogue().health() is UpstreamHealth.DOWN


def test_ollama_models_may_be_asked_for_without_their_tag() -> None:
    ollama, other = upstream(1, "llama3:latest", is_ollama=True), upstream(2, "b")
    catalogue = Catalogue([ollama, other])
    assert catalogue.route("llama3") is ollama
    assert catalogue.describe("llama3") == {"id": "llama3:latest"}


@pytest.mark.parametrize("model", ["gpt-oss:120b-cloud", "glm-4.6:cloud"])
def test_cloud_models_do_not_leave_the_host(model: str) -> None:
    ollama = upstream(1, "llama3:latest", model, is_ollama=True)
    catalogue = Catalogue([ollama])
    assert catalogue.model_decides
    assert isinstance(catalogue.route(model), NoSuchModel)
    assert [entry["id"] for entry in catalogue.listing()] == ["llama3:latest"]
    assert catalogue.describe(model) is None


def test_cloud_models_pass_when_their_owner_says_so() -> None:
    ollama = upstream(1, "glm-4.6:cloud", is_ollama=True)
    catalogue = Catalogue([ollama], cloud_models=True)
    assert not catalogue.model_decides
    assert catalogue.route("glm-4.6:cloud") is ollama


def test_lists_are_merged_without_doubles() -> None:
    catalogue = Catalogue([upstream(1, "a", "both"), upstream(2, "both", "b")])
    assert [entry["id"] for entry in catalogue.listing()] == ["a", "both", "b"]
    assert catalogue.announced() == ("a", "both", "b")


def test_what_is_wrong_with_a_server_is_known() -> None:
    silent = upstream(1, is_up=False)
    silent.fault = "nobody listens there"
    catalogue = Catalogue([silent, upstream(2, "b")])
    assert catalogue.faults() == ["http://127.0.0.1:1: nobody listens there"]


def test_what_is_announced_is_bounded() -> None:
    catalogue = Catalogue([upstream(1, "x" * 300, *(f"m{n}" for n in range(500)))])
    assert len(catalogue.announced()) == 64
    assert all(len(name) <= 255 for name in catalogue.announced())


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([True, True], UpstreamHealth.HEALTHY),
        ([True, False], UpstreamHealth.DEGRADED),
        ([False, False], UpstreamHealth.DOWN),
        ([None, None], UpstreamHealth.UNKNOWN),
        ([True, None], UpstreamHealth.DEGRADED),
    ],
)
def test_health(states: list[bool | None], expected: UpstreamHealth) -> None:
    catalogue = Catalogue(upstream(n, is_up=state) for n, state in enumerate(states, 1))
    assert catalogue.health() is expected
