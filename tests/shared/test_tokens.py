import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm

from byoai_shared.identity import new_tunnel_id
from byoai_shared.keys import new_key
from byoai_shared.tokens import (
    LEEWAY_S,
    TokenFault,
    TokenRefused,
    TokenVerifier,
    TunnelClaims,
    keys_from_jwks,
    public_jwk,
    sign_token,
)

NOW = 1_800_000_000
THUMBPRINT = "A" * 43
KEY = new_key()
RSA_KEY = rsa.generate_private_key(65537, 2048)
CLAIMS = TunnelClaims(
    issuer="byoai-gateway",
    audience="byoai-relay",
    tunnel_id=new_tunnel_id(),
    issued_at=NOW,
    not_before=NOW,
    expires_at=NOW + 900,
    token_id="token-1",
    certificate_thumbprint=THUMBPRINT,
    generation=1,
)
HEADER = {"alg": "ES256", "typ": "tunnel+jwt", "kid": "key-1"}
PAYLOAD: dict[str, Any] = {
    "iss": CLAIMS.issuer,
    "aud": CLAIMS.audience,
    "sub": CLAIMS.tunnel_id,
    "iat": NOW,
    "nbf": NOW,
    "exp": NOW + 900,
    "jti": CLAIMS.token_id,
    "cnf": {"x5t#S256": THUMBPRINT},
    "gen": 1,
}

Sign = Callable[[bytes], bytes]


def text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def es256(key: ec.EllipticCurvePrivateKey) -> Sign:
    return lambda message: ECAlgorithm(ECAlgorithm.SHA256).sign(message, key)


def rs256(message: bytes) -> bytes:
    return RSA_KEY.sign(message, padding.PKCS1v15(), hashes.SHA256())


def hs256(message: bytes) -> bytes:
    """Sign with the public key as a shared secret: the classic confusion of algorithms."""
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hmac.digest(public, message, hashlib.sha256)


def unsigned(_message: bytes) -> bytes:
    return b""


def forged(
    header: dict[str, Any] | bytes | None = None,
    payload: dict[str, Any] | bytes | None = None,
    sign: Sign | None = None,
) -> str:
    """Put a token together without any library that might refuse to."""
    head = header if isinstance(header, bytes) else json.dumps(header or HEADER).encode()
    body = payload if isinstance(payload, bytes) else json.dumps(payload or PAYLOAD).encode()
    signed = f"{text(head)}.{text(body)}"
    return f"{signed}.{text((sign or es256(KEY))(signed.encode()))}"


def verifier(keys: dict[str, ec.EllipticCurvePublicKey] | None = None) -> TokenVerifier:
    trusted = {"key-1": KEY.public_key()} if keys is None else keys
    return TokenVerifier(issuer=CLAIMS.issuer, audience=CLAIMS.audience, keys=trusted)


def verify(token: str, *, now: float = NOW + 1, thumbprint: str = THUMBPRINT) -> TunnelClaims:
    return verifier().verify(token, certificate_thumbprint=thumbprint, now=now)


def fault_of(token: str, *, now: float = NOW + 1, thumbprint: str = THUMBPRINT) -> TokenFault:
    with pytest.raises(TokenRefused) as refused:
        verify(token, now=now, thumbprint=thumbprint)
    assert token not in str(refused.value) or not token
    return refused.value.fault


def test_a_signed_token_says_what_was_signed() -> None:
    assert verify(sign_token(CLAIMS, KEY, "key-1")) == CLAIMS


def test_the_forge_makes_tokens_that_hold() -> None:
    # Otherwise every refusal below could have one and the same, wrong reason.
    assert verify(forged()) == CLAIMS


@given(
    st.integers(0, 2**52),
    st.integers(1, 3600),
    st.text(min_size=1, max_size=40),
    st.integers(1, 2**31),
)
def test_every_honest_token_survives(at: int, life: int, token_id: str, generation: int) -> None:
    claims = TunnelClaims(
        issuer=CLAIMS.issuer,
        audience=CLAIMS.audience,
        tunnel_id=CLAIMS.tunnel_id,
        issued_at=at,
        not_before=at,
        expires_at=at + life,
        token_id=token_id,
        certificate_thumbprint=THUMBPRINT,
        generation=generation,
    )
    assert verify(sign_token(claims, KEY, "key-1"), now=at) == claims


# -- binding


def test_a_token_on_another_certificate_is_refused() -> None:
    token = sign_token(CLAIMS, KEY, "key-1")
    assert fault_of(token, thumbprint="B" * 43) is TokenFault.WRONG_CERTIFICATE


@pytest.mark.parametrize("thumbprint", ["", "é", THUMBPRINT[:-1], THUMBPRINT.lower()])
def test_a_thumbprint_is_compared_whole(thumbprint: str) -> None:
    token = sign_token(CLAIMS, KEY, "key-1")
    assert fault_of(token, thumbprint=thumbprint) is TokenFault.WRONG_CERTIFICATE


def test_a_token_bound_to_no_certificate_is_refused() -> None:
    assert fault_of(forged(payload={**PAYLOAD, "cnf": {}})) is TokenFault.BAD_CLAIMS


# -- time


def test_an_expired_token_is_refused() -> None:
    token = sign_token(CLAIMS, KEY, "key-1")
    assert fault_of(token, now=NOW + 900 + LEEWAY_S) is TokenFault.EXPIRED


def test_a_token_is_not_valid_before_its_time() -> None:
    token = sign_token(CLAIMS, KEY, "key-1")
    assert fault_of(token, now=NOW - LEEWAY_S - 1) is TokenFault.NOT_YET_VALID


def test_a_not_before_later_than_the_issue_counts() -> None:
    token = forged(payload={**PAYLOAD, "nbf": NOW + 60})
    assert fault_of(token, now=NOW + 1) is TokenFault.NOT_YET_VALID


@pytest.mark.parametrize("now", [NOW - LEEWAY_S, NOW + 900 + LEEWAY_S - 1])
def test_clocks_may_differ_a_little(now: int) -> None:
    assert verify(sign_token(CLAIMS, KEY, "key-1"), now=now) == CLAIMS


@pytest.mark.parametrize("life", [3601, 86_400, 10**12])
def test_an_absurd_expiry_is_refused(life: int) -> None:
    assert fault_of(forged(payload={**PAYLOAD, "exp": NOW + life})) is TokenFault.LIFE_TOO_LONG


def test_backdating_does_not_lengthen_a_life() -> None:
    payload = {**PAYLOAD, "iat": NOW - 3000}
    assert fault_of(forged(payload=payload)) is TokenFault.LIFE_TOO_LONG


@pytest.mark.parametrize("expiry", [10**18, 2**63, 10**400, -1, 1e18, float("inf")])
def test_an_expiry_out_of_range_is_refused(expiry: float) -> None:
    assert fault_of(forged(payload={**PAYLOAD, "exp": expiry})) is TokenFault.BAD_CLAIMS


def test_a_life_that_ends_before_it_begins_is_refused() -> None:
    payload = {**PAYLOAD, "iat": NOW + 5, "nbf": NOW + 5, "exp": NOW + 4}
    assert fault_of(forged(payload=payload)) is TokenFault.BAD_CLAIMS


@pytest.mark.parametrize("claim", ["exp", "iat", "nbf"])
@pytest.mark.parametrize("value", [str(NOW + 60), NOW + 60.5, float(NOW + 60), True, None, [NOW]])
def test_a_time_that_is_no_integer_is_refused(claim: str, value: object) -> None:
    assert fault_of(forged(payload={**PAYLOAD, claim: value})) is TokenFault.BAD_CLAIMS


# -- type, audience, issuer


@pytest.mark.parametrize("typ", ["JWT", "at+jwt", "byoai-agent+jwt", "TUNNEL+JWT", ""])
def test_a_token_of_another_type_is_refused(typ: str) -> None:
    assert fault_of(forged({**HEADER, "typ": typ})) is TokenFault.WRONG_TYPE


def test_a_token_without_a_type_is_refused() -> None:
    assert fault_of(forged({"alg": "ES256", "kid": "key-1"})) is TokenFault.MALFORMED


def test_another_audience_is_refused() -> None:
    payload = {**PAYLOAD, "aud": "someone-else"}
    assert fault_of(forged(payload=payload)) is TokenFault.WRONG_AUDIENCE


@pytest.mark.parametrize("audience", [["byoai-relay"], ["byoai-relay", "other"], [], None, ""])
def test_an_audience_that_is_no_text_is_refused(audience: object) -> None:
    assert fault_of(forged(payload={**PAYLOAD, "aud": audience})) is TokenFault.BAD_CLAIMS


def test_another_issuer_is_refused() -> None:
    assert fault_of(forged(payload={**PAYLOAD, "iss": "mallory"})) is TokenFault.WRONG_ISSUER


# -- algorithm and key


@pytest.mark.parametrize("name", ["none", "None", "NONE", ""])
def test_an_unsigned_token_is_refused(name: str) -> None:
    token = forged({**HEADER, "alg": name}, sign=unsigned)
    assert fault_of(token) is TokenFault.WRONG_ALGORITHM


def test_a_token_with_an_empty_signature_is_refused() -> None:
    assert fault_of(forged(sign=unsigned)) is TokenFault.BAD_SIGNATURE


def test_hs256_with_the_public_key_as_its_secret_is_refused() -> None:
    assert fault_of(forged({**HEADER, "alg": "HS256"}, sign=hs256)) is TokenFault.WRONG_ALGORITHM


def test_hs256_that_calls_itself_es256_is_refused() -> None:
    assert fault_of(forged(sign=hs256)) is TokenFault.BAD_SIGNATURE


def test_rs256_is_refused() -> None:
    assert fault_of(forged({**HEADER, "alg": "RS256"}, sign=rs256)) is TokenFault.WRONG_ALGORITHM


def test_rs256_that_calls_itself_es256_is_refused() -> None:
    assert fault_of(forged(sign=rs256)) is TokenFault.BAD_SIGNATURE


@pytest.mark.parametrize("name", ["ES384", "ES256K", "EdDSA", "PS256", "es256"])
def test_any_other_algorithm_is_refused(name: str) -> None:
    assert fault_of(forged({**HEADER, "alg": name})) is TokenFault.WRONG_ALGORITHM


def test_an_unknown_key_id_is_refused() -> None:
    assert fault_of(forged({**HEADER, "kid": "key-2"})) is TokenFault.UNKNOWN_KEY


def test_a_token_without_a_key_id_is_refused() -> None:
    assert fault_of(forged({"alg": "ES256", "typ": "tunnel+jwt"})) is TokenFault.UNKNOWN_KEY


def test_another_key_under_a_known_id_is_refused() -> None:
    assert fault_of(sign_token(CLAIMS, new_key(), "key-1")) is TokenFault.BAD_SIGNATURE


def test_a_key_that_was_dropped_no_longer_counts() -> None:
    token = sign_token(CLAIMS, KEY, "key-1")
    with pytest.raises(TokenRefused) as refused:
        verifier({}).verify(token, certificate_thumbprint=THUMBPRINT, now=NOW)
    assert refused.value.fault is TokenFault.UNKNOWN_KEY


@pytest.mark.parametrize("claim", sorted(PAYLOAD))
def test_a_changed_claim_breaks_the_signature(claim: str) -> None:
    head, _, signature = forged().split(".")
    body = text(json.dumps({**PAYLOAD, claim: "changed"}).encode())
    assert fault_of(f"{head}.{body}.{signature}") is TokenFault.BAD_SIGNATURE


@pytest.mark.parametrize(
    "extra", [{"jwk": {}}, {"jku": "https://x"}, {"x5u": "https://x"}, {"crit": []}, {"b64": False}]
)
def test_a_header_that_brings_its_own_key_or_rules_is_refused(extra: dict[str, object]) -> None:
    assert fault_of(forged({**HEADER, **extra})) is TokenFault.MALFORMED


@pytest.mark.parametrize("kid", [1, None, ["key-1"], {"a": 1}])
def test_a_key_id_that_is_no_text_is_refused(kid: object) -> None:
    assert fault_of(forged({**HEADER, "kid": kid})) is TokenFault.MALFORMED


# -- size and shape


def test_a_megabyte_of_token_is_refused() -> None:
    token = forged(payload={**PAYLOAD, "jti": "x" * 1_000_000})
    assert fault_of(token) is TokenFault.TOO_LARGE


def test_4096_bytes_are_the_limit() -> None:
    assert fault_of("a" * 4096) is TokenFault.MALFORMED
    assert fault_of("a" * 4097) is TokenFault.TOO_LARGE


@pytest.mark.parametrize("claim", sorted(PAYLOAD))
def test_a_missing_claim_is_refused(claim: str) -> None:
    payload = {name: value for name, value in PAYLOAD.items() if name != claim}
    assert fault_of(forged(payload=payload)) is TokenFault.BAD_CLAIMS


def test_a_superfluous_claim_is_refused() -> None:
    assert fault_of(forged(payload={**PAYLOAD, "admin": True})) is TokenFault.BAD_CLAIMS


@pytest.mark.parametrize("generation", [0, -1, "1", 1.0, True, 2**40])
def test_a_generation_that_cannot_be_is_refused(generation: object) -> None:
    assert fault_of(forged(payload={**PAYLOAD, "gen": generation})) is TokenFault.BAD_CLAIMS


@pytest.mark.parametrize("claim", ["iss", "aud", "sub", "jti"])
@pytest.mark.parametrize("value", ["", 1, None, "x" * 256])
def test_a_text_claim_that_is_no_short_text_is_refused(claim: str, value: object) -> None:
    assert fault_of(forged(payload={**PAYLOAD, claim: value})) is TokenFault.BAD_CLAIMS


@pytest.mark.parametrize(
    "payload", [b"", b"null", b"[]", b'"text"', b"{", b"\xff\xfe", b"[" * 2000, b'{"a":' * 400]
)
def test_claims_that_are_no_object_are_refused(payload: bytes) -> None:
    # An empty body would be replaced by the default one.
    token = forged(payload=payload or b" ")
    assert fault_of(token) is TokenFault.BAD_CLAIMS


@pytest.mark.parametrize(
    "header", [b" ", b"null", b"[]", b"{", b"\xff\xfe", b"[" * 2000, b'{"alg":' * 300]
)
def test_a_header_that_is_no_object_is_refused(header: bytes) -> None:
    assert fault_of(forged(header)) is TokenFault.MALFORMED


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "...", "a.b", "a.b.c", "é.é.é", "\udcff..", forged() + ".x", " " + forged()],
)
def test_what_is_no_token_is_refused(token: str) -> None:
    assert fault_of(token) is TokenFault.MALFORMED


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_cut_token_is_refused(cut: int) -> None:
    assert fault_of(forged()[:-cut]) in {TokenFault.BAD_SIGNATURE, TokenFault.MALFORMED}


@given(st.text(max_size=200) | st.text("abcXYZ019-_.=", max_size=200))
def test_any_text_is_refused_in_words(token: str) -> None:
    with pytest.raises(TokenRefused):
        verify(token)


def test_a_key_id_can_be_read_before_anything_is_trusted() -> None:
    assert verifier({}).key_id(forged()) == "key-1"


def test_a_refusal_reads_as_a_sentence() -> None:
    for fault in TokenFault:
        sentence = str(TokenRefused(fault))
        assert sentence[0].islower()
        assert not sentence.endswith(".")


# -- published keys


def test_a_published_key_verifies_what_it_signed() -> None:
    jwk = public_jwk("key-1", KEY.public_key())
    assert set(jwk) == {"kty", "crv", "x", "y", "kid", "alg", "use"}
    wire = msgspec.json.decode(msgspec.json.encode([jwk]), type=list[dict[str, str]])
    keys = keys_from_jwks(wire)
    claims = verifier(keys).verify(forged(), certificate_thumbprint=THUMBPRINT, now=NOW)
    assert claims == CLAIMS


def test_several_keys_are_told_apart_by_their_ids() -> None:
    other = new_key()
    keys = keys_from_jwks(
        [public_jwk("key-1", KEY.public_key()), public_jwk("key-2", other.public_key())]
    )
    token = sign_token(CLAIMS, other, "key-2")
    assert verifier(keys).verify(token, certificate_thumbprint=THUMBPRINT, now=NOW) == CLAIMS


def private_jwk() -> dict[str, str]:
    jwk: dict[str, str] = ECAlgorithm.to_jwk(KEY, as_dict=True)
    return {**jwk, "kid": "key-1"}


def p384_jwk() -> dict[str, str]:
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    jwk: dict[str, str] = ECAlgorithm.to_jwk(public, as_dict=True)
    return {**jwk, "kid": "key-1"}


GOOD_JWK = public_jwk("key-1", KEY.public_key())


@pytest.mark.parametrize(
    "jwk",
    [
        {},
        {"kty": "oct", "k": "AAAA", "kid": "key-1"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "key-1"},
        {name: value for name, value in GOOD_JWK.items() if name != "x"},
        {name: value for name, value in GOOD_JWK.items() if name != "kid"},
        {**GOOD_JWK, "kid": ""},
        {**GOOD_JWK, "x": GOOD_JWK["y"]},
        {**GOOD_JWK, "x": "!"},
        private_jwk(),
        p384_jwk(),
    ],
    ids=lambda jwk: ",".join(sorted(jwk)) or "empty",
)
def test_what_is_no_public_p256_key_with_an_id_is_refused(jwk: dict[str, str]) -> None:
    with pytest.raises(TokenRefused):
        keys_from_jwks([jwk])


def test_two_keys_with_one_id_are_refused() -> None:
    with pytest.raises(TokenRefused):
        keys_from_jwks([GOOD_JWK, public_jwk("key-1", new_key().public_key())])
