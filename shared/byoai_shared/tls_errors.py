"""What goes wrong in the TLS session inside a stream, in sentences for people.

TlsError
├── TlsHandshakeFailed           there is no session
├── TlsPeerRefusedCertificate    the peer does not take our certificate
└── TlsTruncated                 the bytes ended without close_notify
"""

import ssl

from byoai_shared.errors import ByoaiError

# Alerts (RFC 8446 section 6.2) by which a TLS 1.3 server says, after the client's handshake
# has already succeeded, that it does not take the client's certificate.
CERTIFICATE_ALERTS = frozenset(
    {
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "TLSV1_ALERT_UNKNOWN_CA",
        "TLSV1_ALERT_ACCESS_DENIED",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
    }
)


class TlsError(ByoaiError):
    """The TLS session inside a stream failed."""


class TlsHandshakeFailed(TlsError):
    """The session never came to be; `__cause__` says what the TLS library found."""


class TlsPeerRefusedCertificate(TlsError):
    """The peer does not take our certificate (TLS 1.3 says so only after our handshake)."""


class TlsTruncated(TlsError):
    """The peer's bytes ended without `close_notify`: what came may not be all of it."""


def _alert(error: ssl.SSLError | ssl.CertificateError) -> str:
    return getattr(error, "reason", None) or type(error).__name__


def handshake_error(error: ssl.SSLError | ssl.CertificateError) -> TlsError:
    """Return what a failed handshake is to us, `error` being its cause."""
    reason = _alert(error)
    failure: TlsError
    if reason in CERTIFICATE_ALERTS:
        failure = TlsPeerRefusedCertificate(_refusal(reason))
    else:
        detail = getattr(error, "verify_message", "") or reason
        failure = TlsHandshakeFailed(f"TLS handshake failed: {detail}")
    failure.__cause__ = error.with_traceback(None)  # its frames hold the transport, which keeps us
    return failure


def session_error(error: ssl.SSLError) -> TlsError:
    """Return what the failure of an established session is to us, `error` being its cause."""
    reason = _alert(error)
    failure: TlsError
    if isinstance(error, ssl.SSLEOFError):
        failure = TlsTruncated("stream ended without the close_notify of TLS")
    elif reason in CERTIFICATE_ALERTS:
        failure = TlsPeerRefusedCertificate(_refusal(reason))
    else:
        failure = TlsError(f"TLS session failed: {reason}")
    failure.__cause__ = error.with_traceback(None)  # its frames hold the transport, which keeps us
    return failure


def _refusal(reason: str) -> str:
    alert = reason.partition("_ALERT_")[2].lower().replace("_", " ")
    return f"peer refused our certificate: {alert}"
