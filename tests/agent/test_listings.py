"""What a model server, or another program on its port, answers to `GET /v1/models`."""

import pytest

from byoai_agent.listings import Listing, read_listing
from byoai_agent.models import parse_target
from byoai_shared.http1.head import HeadBuffer, HttpLimits, parse_response_head

HTML = b"HTTP/1.1 %b\r\nContent-Type: text/html\r\n\r\n<!doctype html><p>Loading... sign in</p>"
LOADING = (
    b"HTTP/1.1 503 X\r\nContent-Type: application/json\r\nContent-Length: 74\r\n\r\n"
    b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'
)
BUSY = (
    b"HTTP/1.1 503 X\r\nContent-Type: application/json\r\nContent-Length: 85\r\n\r\n"
    b'{"detail":{"msg":"Server is busy; please try again later.","type":"service_unavailable"}}'
)


def look(raw: bytes, url: str = "http://127.0.0.1:8080") -> Listing:
    found = HeadBuffer(65_536).feed(raw)
    assert found is not None
    head, body = found
    return read_listing(parse_target(url), parse_response_head(head, HttpLimits()), body)


@pytest.mark.parametrize(
    ("raw", "sentence"), [(LOADING, "it is loading its model"), (BUSY, "it is busy")]
)
def test_a_server_that_will_be_ready_is_waited_for(raw: bytes, sentence: str) -> None:
    found = look(raw)
    assert (found.fault, found.is_waiting, found.models) == (sentence, True, None)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (HTML % b"200 OK", "a web page, not a list of models"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "sign-in page"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "check that it is an OpenAI-compatible server"),
        (HTML % b"503 X", "cannot list its models (status 503); look at its own log"),
        (HTML % b"502 X", "(status 502)"),
        (b"HTTP/1.1 500 X\r\n\r\n", "look at its own log"),
        (
            b"HTTP/1.1 302 X\r\nLocation: https://u:p@login.lan/a?token=x\r\n\r\n",
            "it redirects to https://login.lan (status 302); name that address instead",
        ),
        (b"HTTP/1.1 301 X\r\nLocation: /v2\r\n\r\n", "it redirects to another address"),
        (b"HTTP/1.1 307 X\r\n\r\n", "it redirects to another address"),
        (
            b"HTTP/1.1 400 X\r\n\r\nThe plain HTTP request was sent to HTTPS port",
            "write https:// instead of http://",
        ),
        (b"HTTP/1.1 404 X\r\n\r\n", "no /llm/v1/models (status 404); check the path"),
        (b"HTTP/1.1 405 X\r\n\r\n", "does not list models (status 405)"),
    ],
)
def test_what_is_no_list_is_explained(raw: bytes, sentence: str) -> None:
    found = look(raw, "http://127.0.0.1:8080/llm")
    assert sentence in found.fault
    assert not found.is_waiting
    assert "u:p" not in found.fault
    assert "token" not in found.fault


@pytest.mark.parametrize("status", [b"401", b"403"])
def test_a_server_that_wants_a_key(status: bytes) -> None:
    found = look(b"HTTP/1.1 %b X\r\n\r\n" % status)
    assert found.wants_key
    assert "API key" in found.fault
