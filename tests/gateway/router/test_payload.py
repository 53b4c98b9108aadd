"""What the router reads of a request, and what it refuses to keep."""

import json
from typing import Any

import pytest

from byoai_gateway.refusals import Refusal
from byoai_gateway.router.endpoints import CHAT, Endpoint, find, methods_of
from byoai_gateway.router.keeping import Budget, Held
from byoai_gateway.router.payload import (
    REPLAYABLE_UPLOAD_BYTES,
    choices_asked,
    is_bound_to_state,
    kept_bytes,
    read_call,
)
from byoai_gateway.router.upstream import Call
from byoai_shared.http1.framing import Framing, Open
from byoai_shared.http1.head import Headers, RequestHead
from byoai_shared.http1.incoming import IncomingBody
from byoai_shared.http1.request import ServerRequest

MIB = 1024 * 1024


class Wire:
    """A connection that nobody answers on."""

    is_answered = False
    transport: Any = None

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def respond(self, head: Any, body: bytes) -> None: ...
    def start_response(self, head: Any, *, hold_head: bool) -> Any: ...
    def abort(self) -> None: ...
    async def drained(self) -> None: ...


def endpoint(path: str) -> Endpoint:
    found = find("POST", path)
    assert found is not None
    return found


FORM: Headers = ((b"content-type", b"multipart/form-data; boundary=b"),)


def request_with(framing: Framing, body: bytes = b"", headers: Headers = ()) -> ServerRequest:
    wire = Wire()
    incoming = IncomingBody(wire, framing, buffer_bytes=64 * 1024, max_overhead_bytes=1024)
    if body:
        incoming.feed(body)
    return ServerRequest(RequestHead("POST", "/v1/chat/completions", headers), incoming, wire)


def held() -> Held:
    return Held(Budget(100 * MIB), "alice")


async def call_of(body: bytes, path: str = "/v1/chat/completions", headers: Headers = ()) -> Call:
    request = request_with(len(body), body, headers)
    return await read_call(request, endpoint(path), "id-1", held())


async def test_model_and_stream_are_read_and_the_rest_stays_bytes() -> None:
    body = b'{ "model": "m", "stream":true, "x": [1.0, 2e3] }'
    call = await call_of(body)
    assert (call.model, call.is_stream, call.wants_usage) == ("m", True, False)
    assert call.body == body
    assert call.fields is not None
    assert bytes(call.fields["x"]) == b"[1.0, 2e3]"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include_usage": True}, True),
        ({"include_usage": False}, False),
        ({}, False),
        (None, False),
    ],
)
async def test_whether_the_client_wants_the_usage_is_known(options: Any, *, expected: bool) -> None:
    call = await call_of(json.dumps({"stream": True, "stream_options": options}).encode())
    assert call.wants_usage is expected


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"{", "invalid_json", None),
        (b"", "invalid_json", None),
        (b"\xff\xfe", "invalid_json", None),
        (b"[" * 100_000, "invalid_body", None),
        (b'{"x":' * 100_000, "invalid_json", None),
        (b"[1]", "invalid_body", None),
        (b'"text"', "invalid_body", None),
        (b'{"model": 7}', "invalid_body", "model"),
        (b'{"model": "a", "model": "a"}', "invalid_body", "model"),
        (b'{"model": "a", "Model": "b"}', "invalid_body", "model"),
        (b'{"model": "%s"}' % (b"m" * 201), "invalid_body", "model"),
        (b'{"model": "a\\nb"}', "invalid_body", "model"),
        (b'{"model": "  "}', "invalid_body", "model"),
        (b'{"stream": "yes"}', "invalid_body", "stream"),
        (b'{"stream_options": 1}', "invalid_body", "stream_options"),
    ],
)
async def test_a_bad_body_is_refused_by_name(body: bytes, code: str, param: str | None) -> None:
    with pytest.raises(Refusal) as refused:
        await call_of(body)
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, code, param)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model": "m"}, False),
        ({"previous_response_id": "r"}, True),
        ({"previous_response_id": None}, False),
        ({"conversation": "c"}, True),
        ({"messages": [{"content": [{"type": "file", "file": {"file_id": "f"}}]}]}, True),
        ({"messages": [{"content": 'say "file_id"'}]}, False),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}, True),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, True),
        ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, True),
        ({"include": ["reasoning.encrypted_content"]}, False),
        ({"container": "container_1"}, True),
        ({"container": None}, False),
        ({"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}, True),
        ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, False),
        ({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, True),
        ({"audio": {"voice": "alloy", "format": "wav"}}, False),
        ({"prompt": {"id": "pmpt_1"}}, True),
        ({"prompt": "Once upon a time"}, False),
    ],
)
async def test_what_refers_to_a_providers_state_is_known(
    fields: dict[str, Any], *, expected: bool
) -> None:
    call = await call_of(json.dumps(fields).encode())
    assert is_bound_to_state(call) is expected


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        ("chat/completions", {}, 1),
        ("chat/completions", {"n": 3}, 3),
        ("chat/completions", {"n": None}, 1),
        ("chat/completions", {"n": 0}, 1),
        ("chat/completions", {"n": "3"}, 1),
        ("completions", {"prompt": "one", "n": 2}, 2),
        ("completions", {"prompt": ["one", "two"], "n": 2}, 4),
        ("completions", {"prompt": [[1, 2], [3]]}, 2),
        ("completions", {"prompt": [1, 2, 3]}, 1),
        ("messages", {"n": 3}, 1),
    ],
)
async def test_how_many_answers_are_asked_for_is_known(
    path: str, fields: dict[str, Any], expected: int
) -> None:
    assert choices_asked(await call_of(json.dumps(fields).encode(), f"/v1/{path}")) == expected


async def test_the_model_of_a_form_is_found() -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\0\1\r\n--b--\r\n'
    )
    call = await call_of(body, "/v1/audio/transcriptions", FORM)
    assert (call.model, call.body, call.fields) == ("whisper-1", body, None)
    assert call.form == {"model", "file"}


async def test_json_where_forms_are_taken_is_read_as_json() -> None:
    json_type: Headers = ((b"content-type", b"application/json"),)
    call = await call_of(b'{"model": "gpt-image-1"}', "/v1/images/edits", json_type)
    assert (call.model, call.form) == ("gpt-image-1", frozenset())
    assert call.fields is not None


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"--b--", ()),
        (b"--b--", (*FORM, *FORM)),
        (b"--b--", (*FORM, (b"content-encoding", b"deflate"))),
        (b"--b\r\n", FORM),
        (b'{"model": "m"}', FORM),
    ],
)
async def test_a_form_that_is_none_is_refused(body: bytes, headers: Headers) -> None:
    with pytest.raises(Refusal) as refused:
        await call_of(body, "/v1/audio/transcriptions", headers)
    assert (refused.value.status, refused.value.code) == (400, "invalid_body")


async def test_a_body_in_a_coding_is_refused() -> None:
    with pytest.raises(Refusal, match="Content-Encoding"):
        await call_of(b'{"model": "m"}', headers=((b"content-encoding", b"gzip"),))


async def test_a_large_upload_is_not_kept() -> None:
    upload = endpoint("/v1/audio/transcriptions")
    for framing in (REPLAYABLE_UPLOAD_BYTES + 1, Open.CHUNKED):
        request = request_with(framing)
        assert kept_bytes(request, upload) == 0
        call = await read_call(request, upload, "id-1", held())
        assert call.body is request.body


def test_a_body_that_is_there_already_costs_no_budget() -> None:
    assert kept_bytes(request_with(2, b"{}"), CHAT) == 0
    assert kept_bytes(request_with(5 * MIB), CHAT) == 5 * MIB
    assert kept_bytes(request_with(Open.CHUNKED), CHAT) == 0


@pytest.mark.parametrize(
    ("method", "target", "is_found", "methods"),
    [
        ("POST", "/v1/chat/completions", True, ("POST",)),
        ("POST", "/v1/chat/completions?beta=true", True, ("POST",)),
        ("GET", "/v1/models", True, ("GET",)),
        ("GET", "/v1/models/org/name", True, ("GET",)),
        ("GET", "/v1/models/", False, ()),
        ("GET", "/v1/chat/completions", False, ("POST",)),
        ("DELETE", "/v1/models/m", False, ("GET",)),
        ("POST", "/v1/chat/completions/", False, ()),
        ("POST", "/v1//chat/completions", False, ()),
        ("POST", "/v1/load_lora_adapter", False, ()),
        ("POST", "/v1/%63hat/completions", False, ()),
    ],
)
def test_only_what_is_listed_is_served(
    method: str, target: str, methods: tuple[str, ...], *, is_found: bool
) -> None:
    assert (find(method, target) is not None) is is_found
    assert methods_of(target) == methods
