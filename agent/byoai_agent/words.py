"""What the errors of the operating system and of TLS mean to a person."""

import errno
import socket
import ssl

# How OpenSSL's versions say that what came back was something else.
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"})
_MEANINGS = {
    errno.ECONNREFUSED: "nobody listens there",
    errno.EHOSTUNREACH: "there is no way to that host",
    errno.EADDRNOTAVAIL: "this host has no address of that kind (IPv4 or IPv6)",
    errno.ENETUNREACH: "there is no way to its network; is this host online?",
    errno.ETIMEDOUT: "no answer in time",
    errno.ECONNRESET: "the connection was cut",
}


def in_words(error: OSError | UnicodeError) -> str:
    """Say what an error of a connection means, without numbers where they help nobody."""
    if isinstance(error, socket.gaierror | UnicodeError):
        return "its name cannot be resolved; check the address and DNS"
    meaning = _MEANINGS.get(error.errno) if error.errno is not None else None
    if meaning is not None:
        return meaning
    if str(error).startswith("Multiple exceptions") and f"Errno {errno.ECONNREFUSED}" in str(error):
        return _MEANINGS[errno.ECONNREFUSED]  # a name with several addresses
    if isinstance(error, TimeoutError):
        return _MEANINGS[errno.ETIMEDOUT]
    return error.strerror or str(error)


def tls_in_words(error: ssl.SSLError) -> str:
    """Say why TLS with a model server failed, and what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate_fault(error)
    if getattr(error, "reason", None) in _NO_TLS:
        return "it does not use TLS on this port; write http:// instead of https://"
    return f"TLS failed ({getattr(error, 'reason', None) or error}); check the port"


def _certificate_fault(error: ssl.SSLCertVerificationError) -> str:
    match error.verify_code:
        case 9 | 10:  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
            return f"its {error.verify_message}; renew it, or set this host's clock"
        case 62 | 64:  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
            return "its certificate is for another name; use the name that is in the certificate"
        case _:
            return (
                f"this host does not trust its certificate ({error.verify_message}); name its "
                "CA's PEM file as `ca_file` under [[upstreams]] in agent.toml, or in "
                "BYOAI_AGENT_UPSTREAM_CA_FILE"
            )
