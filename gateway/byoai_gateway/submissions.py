"""Reads what an agent submits for its certificates, and takes nothing from it but a key.

Names, extensions and lifetimes in a signing request are ignored: the gateway decides them. Only
P-256 keys are taken, and only with proof that the sender holds the private half.
"""

from http import HTTPStatus

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from byoai_gateway.refusals import Refusal
from byoai_shared.identity import tunnel_hostname
from byoai_shared.keys import is_p256


def spki(public_key: ec.EllipticCurvePublicKey) -> bytes:
    """The DER of a public key, equal exactly when the keys are."""
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def requested_key(csr_pem: str) -> ec.EllipticCurvePublicKey:
    """The key of a signing request whose signature proves possession of it.

    Raises:
        Refusal: it cannot be read, or proves nothing.
    """
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        key = request.public_key()
        is_proven = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature) as error:
        raise _invalid("csrPem", "the signing request is not PKCS #10 in PEM") from error
    if not is_proven:
        raise _invalid("csrPem", "the signing request is not signed by its own key")
    return _p256(key, "csrPem")


def end_to_end_key(certificate_pem: str, tunnel_id: str, now: float) -> ec.EllipticCurvePublicKey:
    """The key of an end-to-end certificate that may be pinned for a tunnel.

    Raises:
        Refusal: it is not one self-signed, valid certificate for the tunnel's host name.
    """
    param = "endToEndCertificatePem"
    try:
        (certificate,) = x509.load_pem_x509_certificates(certificate_pem.encode())
        key = _p256(certificate.public_key(), param)
        certificate.verify_directly_issued_by(certificate)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        hosts = names.value.get_values_for_type(x509.DNSName)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
        raise _invalid(param, "this is not one self-signed certificate in PEM") from error
    if hosts != [tunnel_hostname(tunnel_id)] or len(names.value) != 1:
        raise _invalid(param, f"the certificate must be for {tunnel_hostname(tunnel_id)} only")
    if not certificate.not_valid_before_utc.timestamp() <= now:
        raise _invalid(param, "the certificate is not valid yet; check the clock")
    if certificate.not_valid_after_utc.timestamp() <= now:
        raise _invalid(param, "the certificate has expired")
    return key


def _p256(key: object, param: str) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not is_p256(key):
        raise _invalid(param, "only P-256 keys are taken")
    return key


def _invalid(param: str, message: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, "invalid_certificate", message, param=param)
