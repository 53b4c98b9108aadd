import io
import json

import msgspec
import pytest
from rich.console import Console

from byoai_shared.api_errors import ApiError, error_body
from byoai_shared.enrolment import (
    FATAL_CODES,
    EnrolRequest,
    EnrolResponse,
    RenewRequest,
    RenewResponse,
    TokenRequest,
    TokenResponse,
    decode_error,
)

CANARY = "canary-that-nobody-may-see"

ENROL = EnrolRequest(
    tunnel_id="t", secret=CANARY, csr_pem="csr", end_to_end_certificate_pem="certificate"
)
ENROLLED = EnrolResponse(
    agent_id="a",
    certificate_pem="pem",
    relays=["wss://relay.example:7443"],
    services_ca_pem="pem",
    owner="user",
    server_time=1,
    authentication_keys=[CANARY],
    token=CANARY,
    token_expires_at=2,
    certificate_expires_at=3,
    key_fingerprint="SHA256:x",
)
RENEWED = RenewResponse(
    certificate_pem="pem",
    services_ca_pem="pem",
    relays=[],
    certificate_expires_at=3,
    server_time=1,
    token=CANARY,
    token_expires_at=2,
)
TOKEN = TokenResponse(
    token=CANARY, token_expires_at=2, authentication_keys=[CANARY], relays=[], server_time=1
)
MESSAGES = [
    ENROL,
    ENROLLED,
    RenewRequest(assertion=CANARY, csr_pem="csr"),
    RENEWED,
    TokenRequest(assertion=CANARY),
    TOKEN,
]


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_survives_the_wire(message: msgspec.Struct) -> None:
    wire = msgspec.json.encode(message)
    assert msgspec.json.decode(wire, type=type(message)) == message


@pytest.mark.parametrize("message", MESSAGES)
def test_no_message_shows_what_is_in_it(message: msgspec.Struct) -> None:
    output = io.StringIO()
    Console(file=output, width=200).print(message)
    assert CANARY not in repr(message) + str(message) + output.getvalue()


def test_the_wire_speaks_camel_case() -> None:
    assert set(json.loads(msgspec.json.encode(ENROL))) == {
        "tunnelId",
        "secret",
        "csrPem",
        "endToEndCertificatePem",
        "agentVersion",
        "hostname",
        "replaces",
        "replacesKey",
    }


@pytest.mark.parametrize("type_", [EnrolRequest, RenewRequest, TokenRequest])
def test_the_gateway_refuses_a_field_it_does_not_know(type_: type[msgspec.Struct]) -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode(b'{"isAdmin": true}', type=type_)


def test_an_agent_ignores_what_a_newer_gateway_adds() -> None:
    wire = {**json.loads(msgspec.json.encode(TOKEN)), "somethingNew": 1}
    assert msgspec.json.decode(json.dumps(wire).encode(), type=TokenResponse) == TOKEN


@pytest.mark.parametrize("field", ["secret", "csrPem", "hostname"])
def test_an_oversized_field_is_refused(field: str) -> None:
    wire = {**json.loads(msgspec.json.encode(ENROL)), field: "x" * 10_000}
    with pytest.raises(msgspec.ValidationError, match="length"):
        msgspec.json.decode(json.dumps(wire).encode(), type=EnrolRequest)


def test_an_error_is_read_back() -> None:
    body = error_body(410, "join_code_used", "used", param="secret")
    assert decode_error(body) == ApiError(
        "used", "invalid_request_error", "join_code_used", "secret"
    )


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"error": "text"}', b"[" * 5000])
def test_an_error_of_another_shape_is_none(body: bytes) -> None:
    assert decode_error(body) is None


def test_the_codes_after_which_a_person_must_act() -> None:
    assert {
        "join_code_used",
        "join_code_expired",
        "join_code_unknown",
        "tunnel_revoked",
        "key_replaced",
    } == FATAL_CODES
