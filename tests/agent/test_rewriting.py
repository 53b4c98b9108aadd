import pytest

from byoai_agent.rewriting import caller_head, upstream_headers, without_length
from byoai_shared.http1.head import ResponseHead
from byoai_shared.secret import Secret

HOST = "127.0.0.1:11434"


def rebuilt(*headers: tuple[bytes, bytes], key: str | None = None) -> dict[bytes, bytes]:
    fields = upstream_headers(headers, HOST, Secret(key) if key else None)
    assert len(fields) == len(dict(fields))
    return dict(fields)


def test_the_host_is_the_servers_own() -> None:
    assert rebuilt((b"host", b"abc.tunnel.internal"))[b"host"] == HOST.encode()


@pytest.mark.parametrize(
    "name",
    [
        "origin",
        "referer",
        "cookie",
        "authorization",
        "x-api-key",
        "api-key",
        "proxy-authorization",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "transfer-encoding",
        "expect",
        "forwarded",
        "x-forwarded-for",
        "x-real-ip",
        "via",
        "sec-fetch-site",
        "x-byoai-agent-error",
    ],
)
def test_what_is_not_the_servers_business_is_dropped(name: str) -> None:
    assert rebuilt((name.encode(), b"value")) == {b"host": HOST.encode()}


def test_fields_named_by_connection_are_dropped() -> None:
    fields = rebuilt((b"connection", b"close, X-Hop"), (b"x-hop", b"1"), (b"x-end", b"2"))
    assert fields == {b"host": HOST.encode(), b"x-end": b"2"}


@pytest.mark.parametrize(
    "name",
    [
        "content-type",
        "content-length",
        "accept",
        "user-agent",
        "x-request-id",
        "traceparent",
        "openai-beta",
        "anthropic-version",
    ],
)
def test_what_the_call_needs_stays(name: str) -> None:
    assert rebuilt((name.encode(), b"value"))[name.encode()] == b"value"


def test_the_key_is_replaced_by_the_servers_own() -> None:
    fields = rebuilt((b"authorization", b"Bearer tunnel-key"), key="local-key")
    assert fields[b"authorization"] == b"Bearer local-key"


def test_without_a_local_key_none_is_sent() -> None:
    assert b"authorization" not in rebuilt((b"authorization", b"Bearer tunnel-key"))


def test_an_answer_goes_back_without_cookies_and_its_hop() -> None:
    head = ResponseHead(
        200,
        (
            (b"content-type", b"text/event-stream"),
            (b"set-cookie", b"a=b"),
            (b"server", b"uvicorn"),
            (b"access-control-allow-origin", b"*"),
            (b"x-byoai-agent-error", b"forged"),
            (b"connection", b"keep-alive"),
            (b"transfer-encoding", b"chunked"),
            (b"retry-after", b"3"),
        ),
        b"OK",
    )
    assert caller_head(head).headers == (
        (b"content-type", b"text/event-stream"),
        (b"retry-after", b"3"),
    )


def test_a_length_can_be_left_to_the_sender() -> None:
    assert without_length(((b"content-length", b"5"), (b"a", b"b"))) == ((b"a", b"b"),)
