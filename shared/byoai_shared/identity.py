"""Names: tunnels, and who a certificate says its holder is.

Certificates name agents, gateways and relays by a SAN URI (RFC 5280 section 4.2.1.6):
`byoai://agent/<tunnel_id>/<agent_id>`, `byoai://gateway/<name>`, `byoai://relay/<name>`. A
certificate with no such name, or with two, names nobody. Whether its signature holds is for TLS
to check.
"""

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from byoai_shared.errors import ByoaiError

TUNNEL_ID_BYTES: Final = 16
_TUNNEL_ID = re.compile(r"[a-z2-7]{26}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SCHEME: Final = "byoai://"


class IdentityError(ByoaiError):
    """A name or a certificate is not what it has to be."""


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """One agent of one tunnel."""

    tunnel_id: str
    agent_id: str

    def __str__(self) -> str:
        return f"agent {self.agent_id} of tunnel {self.tunnel_id}"


@dataclass(frozen=True, slots=True)
class GatewayIdentity:
    """A gateway of the operator."""

    name: str

    def __str__(self) -> str:
        return f"gateway {self.name}"


@dataclass(frozen=True, slots=True)
class RelayIdentity:
    """A relay of the operator."""

    name: str

    def __str__(self) -> str:
        return f"relay {self.name}"


Identity = AgentIdentity | GatewayIdentity | RelayIdentity


def new_tunnel_id() -> str:
    """Return 128 random bits as 26 characters of lower-case base32 (RFC 4648 section 6)."""
    raw = secrets.token_bytes(TUNNEL_ID_BYTES)
    return base64.b32encode(raw).decode().rstrip("=").lower()


def parse_tunnel_id(text: str) -> str:
    """Return `text` if it has the shape of a tunnel id.

    Raises:
        IdentityError: it has not.
    """
    if _TUNNEL_ID.fullmatch(text) is None:
        raise IdentityError("a tunnel id has 26 characters, a to z and 2 to 7")
    return text


def tunnel_hostname(tunnel_id: str) -> str:
    """Return the name that an agent's end-to-end certificate bears."""
    return f"{tunnel_id}.tunnel.internal"


def identity_uri(identity: Identity) -> str:
    """Return the SAN URI that names `identity`.

    Raises:
        IdentityError: a name in it has characters that a URI would need escaped.
    """
    match identity:
        case AgentIdentity(tunnel_id, agent_id):
            return f"{_SCHEME}agent/{parse_tunnel_id(tunnel_id)}/{_name(agent_id)}"
        case GatewayIdentity(name):
            return f"{_SCHEME}gateway/{_name(name)}"
        case RelayIdentity(name):
            return f"{_SCHEME}relay/{_name(name)}"


def parse_identity_uri(uri: str) -> Identity:
    """Return the identity that a SAN URI names.

    Raises:
        IdentityError: it names none.
    """
    match uri.removeprefix(_SCHEME).split("/") if uri.startswith(_SCHEME) else []:
        case ["agent", tunnel_id, agent_id]:
            return AgentIdentity(parse_tunnel_id(tunnel_id), _name(agent_id))
        case ["gateway", name]:
            return GatewayIdentity(_name(name))
        case ["relay", name]:
            return RelayIdentity(_name(name))
        case _:
            raise IdentityError("this names neither an agent nor a gateway nor a relay")


def certificate_identity(der: bytes) -> Identity:
    """Return whom a certificate names. Its signature is for TLS to check.

    Raises:
        IdentityError: it cannot be read, or has not exactly one SAN URI of ours.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (
        ValueError,
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise IdentityError("the certificate names nobody") from error
    uris = [
        uri
        for uri in names.get_values_for_type(x509.UniformResourceIdentifier)
        if uri.startswith(_SCHEME)
    ]
    if len(uris) != 1:
        raise IdentityError(f"the certificate has {len(uris)} names of ours, 1 is required")
    return parse_identity_uri(uris[0])


def certificate_thumbprint(der: bytes) -> str:
    """Return the `x5t#S256` of a certificate (RFC 8705 section 3.1)."""
    return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")


def key_thumbprint(spki: bytes) -> str:
    """Return the id of a public key, given as DER: its SHA-256 in base64url."""
    return base64.urlsafe_b64encode(hashlib.sha256(spki).digest()).decode().rstrip("=")


def key_fingerprint(public_key: ec.EllipticCurvePublicKey) -> str:
    """Return what two people compare to know that they mean the same key."""
    spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = base64.b32encode(hashlib.sha256(spki).digest()[:20]).decode().lower()
    groups = [digest[at : at + 4] for at in range(0, len(digest), 4)]
    return f"SHA256:{'-'.join(groups)}"


def _name(text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise IdentityError("a name has 1 to 63 characters: letters, digits, and . _ -")
    return text
