from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from byoai_gateway.refusals import Refusal
from byoai_gateway.submissions import end_to_end_key, requested_key
from byoai_shared.identity import tunnel_hostname
from byoai_shared.keys import make_csr, new_key, self_signed_certificate
from support.control import FakeClock, end_to_end_pem

TUNNEL = "a" * 26
EMPTY = x509.Name([])
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def csr(key: Key, *extensions: x509.ExtensionType) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(EMPTY)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM).decode()


def test_the_key_is_taken_from_a_signing_request() -> None:
    key = new_key()
    assert requested_key(make_csr(key).decode()) == key.public_key()


def test_nothing_else_in_it_matters() -> None:
    key = new_key()
    wishes = (
        x509.BasicConstraints(ca=True, path_length=None),
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier("byoai://gateway/g")]),
    )
    assert requested_key(csr(key, *wishes)) == key.public_key()


def test_a_request_not_signed_by_its_own_key_is_refused() -> None:
    ours = x509.load_pem_x509_csr(make_csr(new_key())).public_bytes(Encoding.DER)
    theirs = x509.load_pem_x509_csr(make_csr(new_key()))
    forged = ours[: -len(theirs.signature)] + theirs.signature
    try:
        pem = x509.load_der_x509_csr(forged).public_bytes(Encoding.PEM).decode()
    except ValueError:  # signatures differ in length: then it is not even a request
        pem = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(Refusal) as caught:
        requested_key(pem)
    assert caught.value.param == "csrPem"


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
)
def test_only_p256_keys_are_taken(key: Key) -> None:
    with pytest.raises(Refusal, match="P-256"):
        requested_key(csr(key))


@pytest.mark.parametrize(
    "text", ["", "nonsense", end_to_end_pem(TUNNEL), make_csr(new_key()).decode()[:200], "é"]
)
def test_what_is_no_signing_request_is_refused(text: str) -> None:
    with pytest.raises(Refusal) as caught:
        requested_key(text)
    assert caught.value.status == 400


def certificate(
    key: Key,
    *names: x509.GeneralName,
    signer: Key | None = None,
    begins: datetime | None = None,
    life: timedelta = timedelta(days=1),
) -> str:
    start = begins or datetime.now(UTC) - timedelta(minutes=1)
    signing = signer or key
    algorithm = None if isinstance(signing, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return (
        x509.CertificateBuilder()
        .subject_name(EMPTY)
        .issuer_name(EMPTY)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + life)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .sign(signing, algorithm)
        .public_bytes(Encoding.PEM)
        .decode()
    )


OURS = x509.DNSName(tunnel_hostname(TUNNEL))
DAY = timedelta(days=1)


def test_an_agents_own_certificate_is_taken(clock: FakeClock) -> None:
    key = new_key()
    pem = self_signed_certificate(key, tunnel_hostname(TUNNEL), DAY).decode()
    assert end_to_end_key(pem, TUNNEL, clock()) == key.public_key()


@pytest.mark.parametrize(
    ("pem", "complaint"),
    [
        (end_to_end_pem("b" * 26), "must be for"),
        (certificate(new_key(), OURS, x509.DNSName("example.com")), "must be for"),
        (certificate(new_key(), OURS, x509.UniformResourceIdentifier("a:b")), "must be for"),
        (certificate(new_key(), OURS, signer=new_key()), "self-signed"),
        (certificate(new_key(), OURS, begins=datetime.now(UTC) - 2 * DAY), "expired"),
        (certificate(new_key(), OURS, begins=datetime.now(UTC) + DAY), "not valid yet"),
        (certificate(rsa.generate_private_key(65537, 2048), OURS), "P-256"),
        (end_to_end_pem(TUNNEL) * 2, "one self-signed"),
        (make_csr(new_key()).decode(), "one self-signed"),
        ("", "one self-signed"),
        ("nonsense é", "one self-signed"),
    ],
)
def test_any_other_certificate_is_refused(pem: str, complaint: str, clock: FakeClock) -> None:
    with pytest.raises(Refusal, match=complaint) as caught:
        end_to_end_key(pem, TUNNEL, clock())
    assert caught.value.param == "endToEndCertificatePem"
