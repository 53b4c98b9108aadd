"""Answers that providers were not asked for, but give: compressed, marked, or meant for proxies."""

import gzip
import json

import pytest

from byoai_gateway.router.dialects import reader
from byoai_gateway.router.endpoints import Dialect
from byoai_gateway.router.error_shapes import read_body
from support.gateway import Gateway
from support.provider import Provider
from support.provider_script import (
    DONE,
    Script,
    bytewise,
    chat_answer,
    chat_stream,
    finish,
    head,
    refusal,
    stream,
    token,
    whole,
)

BOM = b"\xef\xbb\xbf"
GZIP = {"content-encoding": "gzip"}
PACKED = gzip.compress(token("all") + finish() + DONE)
SAID = json.dumps(chat_answer()).encode()


# -- compressed all the same


async def test_compressed_events_are_said_to_be_and_move_to_the_fallback(
    bring_own: Gateway, own: Provider
) -> None:
    own.expect(stream(PACKED, headers=GZIP))
    answer = await bring_own.chat()
    assert answer.text == "Hello there"
    assert answer.headers["x-byoai-fallback-reason"] == "malformed_answer"
    await bring_own.prefer(fallbackToDefault=False)
    own.expect(stream(PACKED, headers=GZIP))
    answer = await bring_own.chat()
    assert (answer.status, answer.error["code"]) == (502, "malformed_answer")
    assert "compressed" in answer.error["message"]


async def test_a_compressed_whole_answer_says_so(gateway: Gateway, default: Provider) -> None:
    default.expect(whole(gzip.compress(SAID), headers=GZIP))
    answer = await gateway.chat(stream=False)
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.json == chat_answer()  # as the client unpacks it


async def test_a_compressed_error_is_not_shown_as_it_came(
    gateway: Gateway, default: Provider
) -> None:
    default.always(whole(gzip.compress(b'{"error": "no"}'), 400, GZIP))
    answer = await gateway.chat()
    assert answer.status == 400
    assert answer.error["message"] == "the provider answered 400 Bad Request without saying why"


# -- framed in two ways


@pytest.mark.parametrize(
    "framing",
    [
        {"content-length": "2\r\ncontent-length: 2"},
        {"content-length": "2", "transfer-encoding": "chunked"},
        {"content-length": "+2"},
    ],
    ids=["two lengths", "a length and chunks", "no number"],
)
@pytest.mark.parametrize("wants_stream", [True, False], ids=["streamed", "whole"])
async def test_what_could_be_read_in_two_ways_is_not_read(
    gateway: Gateway, default: Provider, framing: dict[str, str], *, wants_stream: bool
) -> None:
    default.expect((head(200, {"content-type": "application/json", **framing}), b"{}"))
    answer = await gateway.chat(stream=wants_stream)
    assert (answer.status, answer.error["code"]) == (502, "malformed_answer")
    assert "breaks the rules of HTTP" in answer.error["message"]
    assert (await gateway.chat(stream=wants_stream)).status == 200
    assert default.connections == 2


async def test_bytes_behind_an_answer_are_nobodys(gateway: Gateway, default: Provider) -> None:
    another = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"
    (said,) = whole(SAID)
    assert isinstance(said, bytes)
    default.expect((said + another,))
    assert (await gateway.chat(stream=False)).json == chat_answer()
    assert (await gateway.chat(stream=False)).json == chat_answer()
    assert default.connections == 2


# -- a byte order mark


@pytest.mark.parametrize("is_bytewise", [False, True])
async def test_a_mark_before_a_stream_hides_no_word_of_it(
    gateway: Gateway, default: Provider, *, is_bytewise: bool
) -> None:
    script = stream(BOM + token("all"), finish(), DONE)
    default.expect(tuple(bytewise(script)) if is_bytewise else script)
    answer = await gateway.chat()
    assert answer.body == token("all") + finish() + DONE


async def test_a_mark_before_json_is_no_fault(gateway: Gateway, default: Provider) -> None:
    default.expect(whole(BOM + SAID))
    answer = await gateway.chat(stream=False)
    assert (answer.status, answer.body) == (200, BOM + SAID)
    default.expect(whole(BOM + SAID))
    assert (await gateway.chat()).text == "Hello there"
    assert read_body(BOM + b'{"error": "no"}').message == "no"


def test_a_mark_before_an_error_does_not_hide_it() -> None:
    seen = reader(Dialect.CHAT)(BOM + b'data: {"error":{"message":"no"}}\n\n')
    assert seen.error is not None


# -- headers


@pytest.mark.parametrize("wants_stream", [True, False], ids=["streamed", "whole"])
async def test_what_a_provider_orders_or_tells_of_its_owner_stays_here(
    gateway: Gateway, default: Provider, *, wants_stream: bool
) -> None:
    meant_for_others = {
        "x-accel-redirect": "/internal/secrets",
        "x-sendfile": "/etc/passwd",
        "x-lighttpd-send-file": "/etc/passwd",
        "x-reproxy-url": "http://169.254.169.254/",
        "x-accel-limit-rate": "1",
        "x-envoy-overloaded": "true",
        "set-cookie": "session=stolen",
        "clear-site-data": '"*"',
        "access-control-allow-origin": "*",
        "access-control-allow-credentials": "true",
        "strict-transport-security": "max-age=1",
        "refresh": "0; url=https://elsewhere.example",
        "openai-organization": "the-operators",
        "x-byoai-provider": "somebody",
        "x-should-retry": "true",
    }
    kept = {"openai-processing-ms": "5", "x-ratelimit-remaining-requests": "7"}
    headers = meant_for_others | kept
    script: Script = whole(chat_answer(), headers=headers)
    if wants_stream:
        script = stream(token("all"), finish(), DONE, headers=headers)
    default.expect(script)
    answer = await gateway.chat(stream=wants_stream)
    assert answer.headers["x-byoai-provider"] == "default"
    assert not (meant_for_others.keys() - {"x-byoai-provider"}) & answer.headers.keys()
    assert kept.items() <= dict(answer.headers).items()


async def test_a_proxy_before_us_is_asked_to_hold_no_stream_back(
    gateway: Gateway, default: Provider
) -> None:
    default.expect(chat_stream("Hello"), refusal(400))
    assert (await gateway.chat()).headers["x-accel-buffering"] == "no"
    assert "x-accel-buffering" not in (await gateway.chat()).headers
