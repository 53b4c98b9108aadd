"""Joins this host to a tunnel: one code, two keys, one call, one directory.

Everything that can fail without the gateway is tried before the code is spent, because a
code works once: the code's own checksum, the directory, the gateway's address and certificate.
Private keys are made here and stay here; what leaves is a request for a certificate.
"""

import hashlib
import hmac
import platform
import time
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from byoai_agent import __version__
from byoai_agent.control import Gateway
from byoai_agent.credentials import new_end_to_end
from byoai_agent.state import KeyPair, Membership, StateDirectory, StateError
from byoai_shared.enrolment import EnrolRequest, EnrolResponse
from byoai_shared.errors import ByoaiError
from byoai_shared.identity import (
    AgentIdentity,
    certificate_identity,
    key_fingerprint,
    key_thumbprint,
)
from byoai_shared.joincode import JoinCode
from byoai_shared.keys import KeyFormatError, key_from_pem, key_to_pem, make_csr, new_key


class EnrolmentError(ByoaiError):
    """The gateway's answer to a join code does not hold."""


@dataclass(frozen=True, slots=True)
class Former:
    """The agent whose state is on this host."""

    agent_id: str = ""
    """Empty: there is none."""
    key_thumbprint: str = ""
    """Of its link key here; empty if that cannot be read."""


NO_FORMER: Final = Former()


@dataclass(frozen=True, slots=True)
class Joined:
    """What came of it."""

    membership: Membership
    link: KeyPair
    end_to_end: KeyPair
    clock_offset_s: float
    """The gateway's clock less this host's."""


def require_free(state: StateDirectory, *, replace: bool) -> None:
    """Refuse to join over an agent that is there, and check that the directory can be used.

    Raises:
        StateError: an agent lives here, or the directory cannot be used.
    """
    if state.is_joined and not replace:
        raise StateError(
            f"an agent lives in {state.path} already; start it with: byoai-agent run  "
            "To give it up and join anew: byoai-agent join CODE --replace"
        )
    state.prepare()


def former_agent(state: StateDirectory, tunnel_id: str) -> Former:
    """The agent of this tunnel whose state is here."""
    try:
        membership = state.membership()
    except StateError:
        return NO_FORMER
    if membership.tunnel_id != tunnel_id:
        return NO_FORMER
    return Former(membership.agent_id, _link_thumbprint(state))


def _link_thumbprint(state: StateDirectory) -> str:
    try:
        public_key = key_from_pem(state.link().key_pem).public_key()
    except (StateError, KeyFormatError):
        return ""
    return key_thumbprint(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


async def gateway_of(code: JoinCode) -> tuple[Gateway, bytes | None]:
    """The gateway that a code names, and its private CA when it has one.

    Raises:
        EnrolmentError: whoever answered has not the CA that the code vouches for.
        GatewayError: nobody answered.
    """
    if code.ca_sha256 is None:
        return Gateway(code.gateway_url), None
    bundle = await Gateway(code.gateway_url).ca_bundle()
    if not _is_vouched_for(bundle, code.ca_sha256):
        raise EnrolmentError(
            f"the gateway at {code.gateway_url} shows another CA than the join code says; "
            "somebody may be in between, or the code is of another gateway: get a new code"
        )
    return Gateway(code.gateway_url, ca_pem=bundle), bundle


def _is_vouched_for(bundle: bytes, ca_sha256: bytes) -> bool:
    """Whether the bundle is one certificate, and that the one of the code."""
    try:
        certificates = x509.load_pem_x509_certificates(bundle)
    except ValueError:
        return False
    hashes = [hashlib.sha256(one.public_bytes(Encoding.DER)).digest() for one in certificates]
    return len(hashes) == 1 and hmac.compare_digest(hashes[0], ca_sha256)


async def enrol(
    code: JoinCode,
    gateway: Gateway,
    ca_pem: bytes | None,
    upstreams: tuple[str, ...],
    *,
    replaces: Former = NO_FORMER,
) -> Joined:
    """Spend the code; `replaces` is the agent of this tunnel whose state is on this host.

    Raises:
        GatewayError: the gateway refused it or did not answer.
        EnrolmentError: its answer is not for this agent.
    """
    key = new_key()
    end_to_end = new_end_to_end(code.tunnel_id)
    answer = await gateway.enrol(
        EnrolRequest(
            tunnel_id=code.tunnel_id,
            secret=code.secret.reveal(),
            csr_pem=make_csr(key).decode("ascii"),
            end_to_end_certificate_pem=end_to_end.certificate_pem.decode("ascii"),
            agent_version=__version__,
            hostname=platform.node()[:255],
            replaces=replaces.agent_id,
            replaces_key=replaces.key_thumbprint,
        )
    )
    link = KeyPair(key_to_pem(key), answer.certificate_pem.encode("ascii"))
    _require_ours(answer, link, end_to_end, code.tunnel_id)
    membership = Membership(
        tunnel_id=code.tunnel_id,
        agent_id=answer.agent_id,
        gateway_url=code.gateway_url,
        relays=tuple(answer.relays),
        services_ca_pem=answer.services_ca_pem,
        gateway_ca_pem=answer.gateway_ca_pem or (ca_pem.decode("ascii") if ca_pem else None),
        owner=answer.owner,
        key_fingerprint=answer.key_fingerprint,
        upstreams=upstreams,
    )
    return Joined(membership, link, end_to_end, answer.server_time - time.time())


def _require_ours(
    answer: EnrolResponse, link: KeyPair, end_to_end: KeyPair, tunnel_id: str
) -> None:
    """The certificate must be for our key and name, and the fingerprint that of our key."""
    certificate = x509.load_pem_x509_certificates(link.certificate_pem)[0]
    if certificate.public_key() != key_from_pem(link.key_pem).public_key():
        raise EnrolmentError("the gateway answered with a certificate for another key")
    identity = certificate_identity(certificate.public_bytes(Encoding.DER))
    if identity != AgentIdentity(tunnel_id, answer.agent_id):
        raise EnrolmentError(f"the gateway answered with a certificate for {identity}")
    ours = key_fingerprint(key_from_pem(end_to_end.key_pem).public_key())
    if answer.key_fingerprint != ours:
        raise EnrolmentError(
            f"the gateway shows the key fingerprint {answer.key_fingerprint}, ours is {ours}"
        )
