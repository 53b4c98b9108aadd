import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from byoai_shared.identity import (
    AgentIdentity,
    GatewayIdentity,
    Identity,
    IdentityError,
    RelayIdentity,
    certificate_identity,
    certificate_thumbprint,
    identity_uri,
    key_fingerprint,
    new_tunnel_id,
    parse_identity_uri,
    parse_tunnel_id,
    tunnel_hostname,
)
from byoai_shared.keys import new_key

TUNNEL = "abcdefghijklmnopqrstuvwxya"
KEY = new_key()

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)
tunnel_ids = st.builds(new_tunnel_id)
identities: st.SearchStrategy[Identity] = st.one_of(
    st.builds(AgentIdentity, tunnel_ids, names),
    st.builds(GatewayIdentity, names),
    st.builds(RelayIdentity, names),
)


def certificate(*extensions: x509.ExtensionType) -> bytes:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


def named(uris: Sequence[str], hosts: Sequence[str] = ()) -> bytes:
    return certificate(
        x509.SubjectAlternativeName(
            [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, hosts)]
        )
    )


def test_tunnel_ids_are_128_random_bits() -> None:
    ids = {new_tunnel_id() for _ in range(100)}
    assert len(ids) == 100
    for tunnel_id in ids:
        assert parse_tunnel_id(tunnel_id) == tunnel_id
        assert len(base64.b32decode(tunnel_id.upper() + "======")) == 16


@pytest.mark.parametrize(
    "text", ["", TUNNEL[:-1], TUNNEL + "a", TUNNEL.upper(), "1" * 26, TUNNEL + "\n", "../" * 9]
)
def test_what_is_no_tunnel_id_is_refused(text: str) -> None:
    with pytest.raises(IdentityError, match="26 characters"):
        parse_tunnel_id(text)


def test_a_tunnels_host_name_is_a_valid_one() -> None:
    assert tunnel_hostname(TUNNEL) == f"{TUNNEL}.tunnel.internal"


@given(identities)
def test_every_identity_survives_its_uri(identity: Identity) -> None:
    assert parse_identity_uri(identity_uri(identity)) == identity


@pytest.mark.parametrize(
    "identity",
    [
        AgentIdentity("short", "a"),
        AgentIdentity(TUNNEL, "a/b"),
        AgentIdentity(TUNNEL, ""),
        GatewayIdentity("a b"),
        GatewayIdentity("x" * 64),
        RelayIdentity(".."),
        RelayIdentity("a\n"),
        RelayIdentity("a%2Fb"),
    ],
)
def test_a_name_that_a_uri_would_have_to_escape_is_refused(identity: Identity) -> None:
    with pytest.raises(IdentityError):
        identity_uri(identity)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "byoai://",
        "byoai://agent",
        f"byoai://agent/{TUNNEL}",
        f"byoai://agent/{TUNNEL}/a/b",
        f"byoai://agent/{TUNNEL}/",
        "byoai://agent/short/a",
        "byoai://gateway/",
        "byoai://gateway/a/b",
        "byoai://operator/a",
        "byoai://relay/a?b",
        "BYOAI://relay/a",
        "https://relay/a",
        " byoai://relay/a",
    ],
)
def test_a_uri_that_names_nobody_is_refused(uri: str) -> None:
    with pytest.raises(IdentityError):
        parse_identity_uri(uri)


@given(identities)
def test_a_certificate_names_its_holder(identity: Identity) -> None:
    assert certificate_identity(named([identity_uri(identity)], ["localhost"])) == identity


def test_a_foreign_uri_beside_ours_does_not_matter() -> None:
    der = named(["spiffe://x/y", "byoai://relay/one"])
    assert certificate_identity(der) == RelayIdentity("one")


def test_a_certificate_with_two_names_names_nobody() -> None:
    der = named(["byoai://relay/one", "byoai://gateway/one"])
    with pytest.raises(IdentityError, match="2 names of ours, 1 is required"):
        certificate_identity(der)


def test_a_certificate_with_a_bad_name_beside_a_good_one_names_nobody() -> None:
    with pytest.raises(IdentityError):
        certificate_identity(named(["byoai://relay/one", "byoai://nonsense"]))


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"not a certificate",
        certificate(),
        named([], ["localhost"]),
        named(["spiffe://x/y"]),
        named(["byoai://gateway/one"])[:-10],
    ],
    ids=["empty", "garbage", "no SAN", "no URI", "foreign URI", "cut"],
)
def test_a_certificate_without_a_name_of_ours_names_nobody(der: bytes) -> None:
    with pytest.raises(IdentityError):
        certificate_identity(der)


def test_a_certificate_with_the_same_extension_twice_names_nobody() -> None:
    # The builder refuses to make one: turn another extension of equal length into a second SAN.
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("byoai://relay/one")])
    ian = x509.IssuerAlternativeName([x509.UniformResourceIdentifier("byoai://relay/two")])
    der = certificate(san, ian)
    oid_of_san, oid_of_ian = bytes.fromhex("0603551d11"), bytes.fromhex("0603551d12")
    assert der.count(oid_of_ian) == 1
    with pytest.raises(IdentityError):
        certificate_identity(der.replace(oid_of_ian, oid_of_san))


def test_the_thumbprint_is_that_of_rfc_8705() -> None:
    der = named(["byoai://relay/one"])
    digest = base64.urlsafe_b64decode(certificate_thumbprint(der) + "=")
    assert digest == hashlib.sha256(der).digest()
    assert "=" not in certificate_thumbprint(der)


def test_a_keys_fingerprint_is_readable_and_its_own() -> None:
    fingerprint = key_fingerprint(KEY.public_key())
    assert fingerprint == key_fingerprint(KEY.public_key())
    assert fingerprint != key_fingerprint(new_key().public_key())
    kind, _, groups = fingerprint.partition(":")
    assert kind == "SHA256"
    assert [len(group) for group in groups.split("-")] == [4] * 8


def test_identities_read_as_words() -> None:
    assert str(AgentIdentity(TUNNEL, "one")) == f"agent one of tunnel {TUNNEL}"
    assert str(GatewayIdentity("one")) == "gateway one"
    assert str(RelayIdentity("one")) == "relay one"
