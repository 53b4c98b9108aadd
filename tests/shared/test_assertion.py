import base64
import json
import secrets
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm

from byoai_shared.assertion import (
    MAX_ASSERTION_LIFE_S,
    Assertion,
    UnverifiedAssertion,
    read_assertion,
    sign_assertion,
    verify_assertion,
)
from byoai_shared.identity import AgentIdentity, identity_uri, key_thumbprint, new_tunnel_id
from byoai_shared.keys import new_key
from byoai_shared.tokens import LEEWAY_S, TokenFault, TokenRefused

NOW = 1_800_000_000
AUDIENCE = "https://gateway.example/agent/v1/token"
AGENT = AgentIdentity(new_tunnel_id(), "agent-1")
KEY = new_key()
URI = identity_uri(AGENT)
HEADER = {"alg": "ES256", "typ": "byoai-agent+jwt"}
PAYLOAD: dict[str, Any] = {
    "iss": URI,
    "sub": URI,
    "aud": AUDIENCE,
    "iat": NOW,
    "exp": NOW + 60,
    "jti": "assertion-1",
}


def signed() -> str:
    return sign_assertion(identity=AGENT, key=KEY, audience=AUDIENCE, now=NOW + 0.9)


def forged(header: dict[str, Any] = HEADER, payload: dict[str, Any] | bytes = PAYLOAD) -> str:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    head = json.dumps(header).encode()
    message = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (head, body))
    signature = ECAlgorithm(ECAlgorithm.SHA256).sign(message.encode(), KEY)
    return f"{message}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def verify(token: str, *, now: float = NOW + 1) -> Assertion:
    return verify_assertion(token, public_key=KEY.public_key(), audience=AUDIENCE, now=now)


def claimed(token: str) -> UnverifiedAssertion:
    return read_assertion(token, audience=AUDIENCE, now=NOW + 1)


def fault_of(token: str, *, now: float = NOW + 1) -> TokenFault:
    with pytest.raises(TokenRefused) as refused:
        verify(token, now=now)
    return refused.value.fault


def test_an_assertion_proves_who_signed_it() -> None:
    assertion = verify(signed())
    assert assertion.identity == AGENT
    assert assertion.expires_at == NOW + MAX_ASSERTION_LIFE_S


def test_the_forge_makes_assertions_that_hold() -> None:
    assert verify(forged()) == Assertion(AGENT, "assertion-1", NOW + 60)


def test_no_two_assertions_have_the_same_id() -> None:
    assert len({verify(signed()).token_id for _ in range(50)}) == 50


def test_who_signed_it_is_read_before_the_key_is_known() -> None:
    spki = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert claimed(signed()) == UnverifiedAssertion(AGENT, key_thumbprint(spki))


def test_an_older_agents_assertion_names_no_key() -> None:
    assert claimed(forged()) == UnverifiedAssertion(AGENT, "")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"aud": AUDIENCE.replace("token", "renew")}, TokenFault.WRONG_AUDIENCE),
        ({"iss": "byoai://relay/one"}, TokenFault.WRONG_ISSUER),
        ({"exp": NOW + 61}, TokenFault.LIFE_TOO_LONG),
        ({"iat": NOW - 100, "exp": NOW - 40}, TokenFault.EXPIRED),
        ({"jti": ""}, TokenFault.BAD_CLAIMS),
    ],
)
def test_what_is_wrong_is_found_before_the_signature_is_looked_at(
    changes: dict[str, Any], fault: TokenFault
) -> None:
    unsigned = forged(payload={**PAYLOAD, **changes}).rpartition(".")[0] + ".AAAA"
    with pytest.raises(TokenRefused) as refused:
        claimed(unsigned)
    assert refused.value.fault is fault


def test_another_agents_key_is_refused() -> None:
    with pytest.raises(TokenRefused) as refused:
        verify_assertion(
            signed(), public_key=new_key().public_key(), audience=AUDIENCE, now=NOW + 1
        )
    assert refused.value.fault is TokenFault.BAD_SIGNATURE


def test_an_assertion_for_another_endpoint_is_refused() -> None:
    other = AUDIENCE.replace("token", "renew")
    with pytest.raises(TokenRefused) as refused:
        verify_assertion(signed(), public_key=KEY.public_key(), audience=other, now=NOW + 1)
    assert refused.value.fault is TokenFault.WRONG_AUDIENCE


def test_an_audience_list_is_refused() -> None:
    assert fault_of(forged(payload={**PAYLOAD, "aud": [AUDIENCE]})) is TokenFault.BAD_CLAIMS


def test_it_lives_for_a_minute() -> None:
    assert verify(signed(), now=NOW + 60 + LEEWAY_S - 1).identity == AGENT
    assert fault_of(signed(), now=NOW + 60 + LEEWAY_S) is TokenFault.EXPIRED


def test_it_does_not_live_before_it_was_made() -> None:
    assert fault_of(signed(), now=NOW - LEEWAY_S - 1) is TokenFault.NOT_YET_VALID


def test_a_longer_life_is_refused() -> None:
    token = forged(payload={**PAYLOAD, "exp": NOW + 61})
    assert fault_of(token) is TokenFault.LIFE_TOO_LONG


def test_a_life_that_ends_before_it_begins_is_refused() -> None:
    assert fault_of(forged(payload={**PAYLOAD, "exp": NOW})) is TokenFault.BAD_CLAIMS


@pytest.mark.parametrize("value", [str(NOW + 60), float(NOW + 60), 10**18, True, None])
def test_an_expiry_that_is_no_sane_integer_is_refused(value: object) -> None:
    assert fault_of(forged(payload={**PAYLOAD, "exp": value})) is TokenFault.BAD_CLAIMS


def test_issuer_and_subject_have_to_be_the_same() -> None:
    other = identity_uri(AgentIdentity(new_tunnel_id(), "agent-2"))
    assert fault_of(forged(payload={**PAYLOAD, "iss": other})) is TokenFault.WRONG_ISSUER


@pytest.mark.parametrize("uri", ["byoai://relay/one", "byoai://gateway/one", "agent-1", "byoai://"])
def test_only_an_agent_can_be_the_subject(uri: str) -> None:
    token = forged(payload={**PAYLOAD, "iss": uri, "sub": uri})
    assert fault_of(token) is TokenFault.BAD_CLAIMS
    with pytest.raises(TokenRefused):
        claimed(token)


@pytest.mark.parametrize("claim", sorted(PAYLOAD))
def test_a_missing_claim_is_refused(claim: str) -> None:
    payload = {name: value for name, value in PAYLOAD.items() if name != claim}
    assert fault_of(forged(payload=payload)) is TokenFault.BAD_CLAIMS


@pytest.mark.parametrize("typ", ["JWT", "tunnel+jwt"])
def test_a_token_of_another_type_is_no_assertion(typ: str) -> None:
    token = forged({**HEADER, "typ": typ})
    assert fault_of(token) is TokenFault.WRONG_TYPE
    with pytest.raises(TokenRefused):
        claimed(token)


@pytest.mark.parametrize("algorithm", ["none", "HS256", "RS256"])
def test_another_algorithm_is_refused(algorithm: str) -> None:
    token = forged({**HEADER, "alg": algorithm})
    assert fault_of(token) is TokenFault.WRONG_ALGORITHM
    with pytest.raises(TokenRefused):
        claimed(token)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a.b.c",
        "x" * 1_000_000,
        forged(payload={**PAYLOAD, "jti": secrets.token_hex(500_000)}),
        forged(payload=b"[" * 2000),
        forged(payload=b'{"iss":' * 300),
        forged(payload=b"null"),
    ],
    ids=["empty", "parts", "megabyte", "megabyte of id", "nested", "nested objects", "null"],
)
def test_looking_up_the_subject_survives_anything(token: str) -> None:
    with pytest.raises(TokenRefused):
        claimed(token)
    with pytest.raises(TokenRefused):
        verify(token)
