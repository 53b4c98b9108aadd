"""What a provider gets to see of a user's request."""

import json
from typing import Any

import msgspec
import pytest

from byoai_gateway.providers.requests import (
    end_to_end_headers,
    is_loop,
    passed_headers,
    prepared,
    provider_body,
)
from byoai_gateway.router.endpoints import Endpoint, find
from byoai_gateway.router.upstream import Call
from byoai_shared.http1.framing import Open
from byoai_shared.http1.head import Headers, RequestHead
from byoai_shared.http1.incoming import IncomingBody

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Wire:
    """A connection that is only read from."""

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


def endpoint(path: str, method: str = "POST") -> Endpoint:
    found = find(method, path)
    assert found is not None
    return found


def call_of(body: bytes, path: str = "/v1/chat/completions", headers: Headers = ()) -> Call:
    fields = _fields.decode(body)
    options: Any = json.loads(bytes(fields.get("stream_options", b"null"))) or {}
    return Call(
        endpoint=endpoint(path),
        head=RequestHead("POST", path, headers),
        body=body,
        fields=fields,
        model=json.loads(bytes(fields.get("model", b"null"))),
        is_stream=bytes(fields.get("stream", b"false")) == b"true",
        wants_usage=options.get("include_usage") is True,
        request_id="id-1",
    )


def upload_of(framing: int | Open) -> Call:
    path = "/v1/audio/transcriptions"
    body = IncomingBody(Wire(), framing, buffer_bytes=1024, max_overhead_bytes=1024)
    head = RequestHead("POST", path, ((b"content-type", b"multipart/form-data; boundary=x"),))
    return Call(endpoint(path), head, body, None, None, False, False, "id-1")


@pytest.mark.parametrize(
    "name",
    [
        b"authorization",
        b"api-key",
        b"x-api-key",
        b"cookie",
        b"host",
        b"origin",
        b"referer",
        b"forwarded",
        b"via",
        b"cdn-loop",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-real-ip",
        b"x-client-ip",
        b"x-auth-request-access-token",
        b"x-amzn-oidc-data",
        b"x-goog-iap-jwt-assertion",
        b"x-ms-client-principal",
        b"x-original-forwarded-for",
        b"x-envoy-external-address",
        b"x-csrf-token",
        b"range",
        b"if-none-match",
        b"cf-connecting-ip",
        b"sec-fetch-site",
        b"x-byoai-tunnel",
        b"x-request-id",
        b"openai-organization",
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"accept-encoding",
        b"x-something-that-a-proxy-tells-of-users",
        b"anthropic-organization-id",
        b"anthropic-something-new",
        b"x-stainless-something-new",
    ],
)
def test_what_is_between_client_and_gateway_stays_there(name: bytes) -> None:
    kept = (b"content-type", b"application/json")
    assert end_to_end_headers(((name, b"value"), kept)) == (kept,)


@pytest.mark.parametrize(
    "name",
    [
        *(b"accept", b"user-agent", b"traceparent", b"idempotency-key"),
        *(b"anthropic-beta", b"x-stainless-lang", b"content-encoding"),
        *(b"anthropic-version", b"x-stainless-retry-count", b"x-stainless-helper-method"),
    ],
)
def test_what_speaks_to_the_provider_passes(name: bytes) -> None:
    assert end_to_end_headers(((name, b"value"),)) == ((name, b"value"),)


def test_what_the_operator_named_passes_besides() -> None:
    passed = passed_headers(("x-tenant",))
    headers = ((b"x-tenant", b"a"), (b"x-other", b"b"), (b"accept", b"*/*"))
    assert end_to_end_headers(headers, passed) == (headers[0], headers[2])
    hop = ((b"connection", b"x-tenant"), (b"x-tenant", b"a"))
    assert end_to_end_headers(hop, passed) == ()


def test_what_connection_names_stays_too() -> None:
    headers = ((b"connection", b"x-hop"), (b"x-hop", b"1"), (b"anthropic-version", b"2023-06-01"))
    assert end_to_end_headers(headers) == ((b"anthropic-version", b"2023-06-01"),)


def test_a_body_that_fits_is_not_touched() -> None:
    body = b'{ "model":"m",  "x": 1.0 }'
    call = call_of(body)
    assert provider_body(call, "m") is call.body
    assert provider_body(call, None) is call.body
    assert provider_body(call, "m", without={"provider"}) is call.body


def test_another_model_changes_nothing_else() -> None:
    body = provider_body(call_of(b'{"model":"a","x":[1.0,2e3],"y":"\\u00e9"}'), "b")
    assert body == b'{"model":"b","x":[1.0,2e3],"y":"\\u00e9"}'


def test_a_missing_model_is_added() -> None:
    assert provider_body(call_of(b'{"x":1}'), "m") == b'{"x":1,"model":"m"}'


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (b"", {"include_usage": True}),
        (b',"stream_options":null', {"include_usage": True}),
        (b',"stream_options":{"include_usage":false}', {"include_usage": True}),
        (b',"stream_options":{"x":[1]}', {"x": [1], "include_usage": True}),
    ],
)
def test_a_stream_is_always_asked_for_its_usage(options: bytes, expected: object) -> None:
    body = provider_body(call_of(b'{"model":"m","stream":true%b}' % options), "m")
    assert isinstance(body, bytes)
    assert json.loads(body) == {"model": "m", "stream": True, "stream_options": expected}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", b'{"stream":true,"stream_options":{"include_usage":true}}'),
        ("/v1/chat/completions", b'{"stream":false}'),
        ("/v1/responses", b'{"stream":true}'),
        ("/v1/messages", b'{"stream":true}'),
    ],
)
def test_usage_is_not_asked_for_where_it_comes_anyway(path: str, body: bytes) -> None:
    call = call_of(body, path)
    assert provider_body(call, None) is call.body


def test_some_fields_can_be_left_out() -> None:
    call = call_of(b'{"model":"m","provider":{},"x":1}')
    assert provider_body(call, "m", without={"provider"}) == b'{"model":"m","x":1}'


def test_a_rebuilt_body_says_everything_once() -> None:
    call = call_of(b'{"model":"dear","model":"cheap"}')
    assert provider_body(call, "cheap", is_rebuilt=True) == b'{"model":"cheap"}'


def test_a_request_is_made_anew() -> None:
    call = call_of(b'{"model":"a"}', headers=((b"content-type", b"application/json"),))
    made = prepared(call, target="/api/x", own=((b"host", b"h"),), model="b")
    assert made.model == "b"
    assert made.head.target == "/api/x"
    assert made.head.headers == (
        (b"host", b"h"),
        (b"accept-encoding", b"identity"),
        (b"cdn-loop", b"byoai"),
        (b"content-type", b"application/json"),
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((), False),
        ((b"cloudflare",), False),
        ((b"byoai.example.com, notbyoai",), False),
        ((b'cloudflare; note="x"', b"byoai"), True),
        ((b"cloudflare,\tBYOAI ; v=1",), True),
    ],
)
def test_a_request_that_a_gateway_made_is_known_again(
    values: tuple[bytes, ...], *, expected: bool
) -> None:
    headers = ((b"host", b"byoai"), *((b"cdn-loop", value) for value in values))
    assert is_loop(headers) is expected


def test_what_is_made_here_would_be_known_again() -> None:
    made = prepared(call_of(b"{}", headers=((b"cdn-loop", b"x"),)), target="/", own=(), model=None)
    assert is_loop(made.head.headers)
    assert [value for name, value in made.head.headers if name == b"cdn-loop"] == [b"byoai"]


def test_an_upload_that_is_still_coming_keeps_its_length() -> None:
    call = upload_of(70_000)
    made = prepared(call, target="/x", own=(), model="m")
    assert made.body is call.body
    assert made.model is None
    assert made.head.header(b"content-length") == b"70000"


def test_an_upload_of_unknown_length_declares_none() -> None:
    made = prepared(upload_of(Open.CHUNKED), target="/x", own=(), model=None)
    assert made.head.header(b"content-length") is None


def test_a_call_without_a_body_carries_none() -> None:
    models = endpoint("/v1/models", "GET")
    head = RequestHead("GET", "/v1/models")
    call = Call(models, head, b"smuggled", None, None, False, False, "id-1")
    assert prepared(call, target="/models", own=(), model=None).body == b""
