"""What the relay believes: the keys that sign tunnel tokens, and who is denied.

It learns this from gateways' links only, keeps it in memory only, and starts knowing nothing:
until the first TRUST came, every agent is asked to try again later. Memory is bounded by
`DenialSet`, and reaching that bound neither ends a link nor lets a revoked tunnel in.

Revisions are times in milliseconds. One that is more than a day ahead of the relay's clock is
refused: a stolen gateway certificate cannot claim a revision that the other gateways could not
exceed. They hear of a revision that is not in their database, and exceed it. A refusal ends no
link, for its sender may have been deceived: it sends the TRUST again later.
"""

from dataclasses import dataclass, field
from typing import Final

import msgspec

from byoai_shared.identity import AgentIdentity
from byoai_shared.protocol.errors import CloseCode, RemoteProtocolError
from byoai_shared.protocol.trust import (
    MAX_ADVANCE_MS,
    MAX_HELD_DENIALS,
    SWEEP_ROWS,
    DenialSet,
    Trust,
    TrustHeld,
    agent_subject,
    trust_digest,
)
from byoai_shared.tokens import (
    LEEWAY_S,
    TokenFault,
    TokenRefused,
    TokenVerifier,
    TunnelClaims,
    keys_from_jwks,
)

MAX_KEYS: Final = 4096
TOO_FAR_AHEAD: Final = "its revision is more than a day ahead of the relay's clock"
INCOMPLETE: Final = "its digest is not that of what came"


_MAY_BE_OUR_FAULT: Final = frozenset(
    {
        TokenFault.NOT_YET_VALID,
        TokenFault.EXPIRED,
        TokenFault.UNKNOWN_KEY,
        TokenFault.BEFORE_REVOCATIONS,
    }
)
"""Of a token that a gateway signed a moment ago: our clock is wrong, our trust is old, or we hold a
rule in place of denials that are too many."""


class TokenDisbelieved(RemoteProtocolError):
    """A token was refused, by itself and not because somebody was revoked."""

    def __init__(self, refused: TokenRefused, now_unix: float) -> None:
        sentence = str(refused)
        if refused.fault is TokenFault.NOT_YET_VALID and refused.issued_at is not None:
            behind_s = refused.issued_at - int(now_unix)
            sentence = f"{sentence}; relay clock differs from the gateway's by about {behind_s} s"
        super().__init__(sentence, CloseCode.TOKEN_REFUSED)
        self.fault = refused.fault

    @property
    def may_be_our_fault(self) -> bool:
        """Whether the relay's clock or its trust can be the reason."""
        return self.fault in _MAY_BE_OUR_FAULT


class Believed(msgspec.Struct, frozen=True):
    """A token that was verified, and the key that signed it."""

    claims: TunnelClaims
    key_id: str


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one TRUST frame, and what its receiver must do about it."""

    is_news: bool = False
    """It completed a revision that is in force now: report it to gateways."""
    is_whole: bool = False
    """It replaced what was believed, or dropped a key: check every link."""
    denied: frozenset[str] = frozenset()
    """Subjects whose links must end now."""
    reply: TrustHeld | None = None
    """What to send back to its sender."""
    refusal: str = ""
    """Why nothing of it is believed, if that is for an operator to know."""


@dataclass(frozen=True, slots=True)
class _Unverified:
    """A change that is in force, whose digest can be compared once the denials are swept."""

    gateway: str
    trust: Trust
    keys: list[dict[str, str]]


@dataclass(slots=True)
class _Incoming:
    """The parts of one revision that have come so far."""

    revision: int
    rules: tuple[int, int]
    denials: DenialSet | None
    """Those of a complete list, until it is; None for changes, which are applied as they come."""
    keys: list[dict[str, str]] = field(default_factory=list[dict[str, str]])


class TrustStore:
    """The newest revision, and what follows from it."""

    def __init__(self, max_denials: int = MAX_HELD_DENIALS) -> None:
        self._max_denials = max_denials
        self._verifier: TokenVerifier | None = None
        self._key_ids: frozenset[str] = frozenset()
        self._denials = DenialSet(max_denials)
        self._revision = 0
        self._digest = ""
        # By the names in gateways' certificates, of which there are few, so that no gateway can
        # disturb what another one is sending.
        self._incoming: dict[str, _Incoming] = {}
        self._asked: set[str] = set()
        self._unverified: _Unverified | None = None

    @property
    def is_known(self) -> bool:
        """Whether any gateway has sent TRUST yet."""
        return self._verifier is not None

    @property
    def revision(self) -> int:
        """The revision in force."""
        return self._revision

    @property
    def denial_count(self) -> int:
        """How many denials are held."""
        return len(self._denials)

    @property
    def held(self) -> TrustHeld:
        """What is believed, in a few bytes."""
        return TrustHeld(revision=self._revision, digest=self._digest)

    def take(self, trust: Trust, *, gateway: str, now_unix: float) -> Taken:
        """Take one TRUST frame of a gateway.

        Raises:
            RemoteProtocolError: its keys cannot be read.
        """
        if trust.revision > now_unix * 1000 + MAX_ADVANCE_MS:
            return Taken() if trust.more else Taken(reply=self.held, refusal=TOO_FAR_AHEAD)
        if not self._may_replace(trust, gateway):
            is_told = trust.more or trust.digest == self._digest
            return Taken(reply=None if is_told else self.held)
        incoming = self._collect(trust, gateway)
        if incoming is None:
            return Taken(reply=self.ask(gateway))
        denied = frozenset(denial.subject for denial in trust.denials if denial.until)
        if trust.more:
            return Taken(denied=denied)
        return self._complete(trust, incoming, gateway, denied)

    def forget_unfinished(self, gateway: str) -> bool:
        """Forget the parts that a gateway has sent so far: its link is gone.

        Returns whether it was asked for the whole, which another one has to be asked for now.
        """
        self._incoming.pop(gateway, None)
        was_asked = gateway in self._asked
        self._asked.discard(gateway)
        return was_asked

    def ask(self, gateway: str) -> TrustHeld:
        """Return what asks a gateway for the whole, and take the whole from it."""
        self._incoming.pop(gateway, None)
        self._asked.add(gateway)
        return msgspec.structs.replace(self.held, wanted=True)

    def _may_replace(self, trust: Trust, gateway: str) -> bool:
        """Whether a revision is newer, or is the answer to a request of ours."""
        if trust.revision == self._revision:
            return gateway in self._asked and trust.base == 0
        return trust.revision > self._revision

    def _collect(self, trust: Trust, gateway: str) -> _Incoming | None:
        """Add a part to those before it; None if something before it is missing."""
        if trust.part == 0:
            denials = None if trust.base else DenialSet(self._max_denials)
            self._incoming[gateway] = _Incoming(trust.revision, _rules(trust), denials)
        incoming = self._incoming.get(gateway)
        if incoming is None or trust.base > self._revision:
            return None
        if (incoming.revision, incoming.rules) != (trust.revision, _rules(trust)):
            return None
        if incoming.denials is None:
            # A part of the next change is in force from now on, and with it no digest is true.
            self._unverified = None
        target = self._denials if incoming.denials is None else incoming.denials
        target.apply(
            trust.denials, expired_before=trust.expired_before, issued_after=trust.issued_after
        )
        incoming.keys += trust.keys
        if len(incoming.keys) > MAX_KEYS:
            raise RemoteProtocolError(f"TRUST with more than {MAX_KEYS} keys")
        return incoming

    def _complete(
        self, trust: Trust, incoming: _Incoming, gateway: str, denied: frozenset[str]
    ) -> Taken:
        del self._incoming[gateway]
        try:
            keys = keys_from_jwks(incoming.keys)
        except (ValueError, KeyError, TokenRefused) as error:
            raise RemoteProtocolError("TRUST with a key that cannot be read") from error
        is_whole = not self._key_ids.issubset(keys)
        if incoming.denials is not None:
            self._asked.discard(gateway)
            if _digest(trust, incoming.keys, incoming.denials) != trust.digest:
                return Taken(denied=denied, reply=self.held, refusal=INCOMPLETE)
            self._denials, is_whole = incoming.denials, True
        self._verifier = TokenVerifier(issuer=trust.issuer, audience=trust.audience, keys=keys)
        self._key_ids = frozenset(keys)
        self._revision = trust.revision
        # Taken for true until it can be compared.
        self._digest = trust.digest
        self._unverified = _Unverified(gateway, trust, incoming.keys)
        return Taken(is_news=True, is_whole=is_whole, denied=denied, reply=self._verify())

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing for `settle` to do."""
        return self._denials.is_swept

    def settle(self) -> TrustHeld | None:
        """Do a part of the work that denials make when they end, some rows at a time.

        Returns what to send to the gateway that sent the last change, if that is news to it.
        """
        self._denials.sweep(SWEEP_ROWS)
        return self._verify()

    def _verify(self) -> TrustHeld | None:
        """Compare the digest of a change; what to send to its sender, if it differs."""
        last = self._unverified
        if last is None or not self._denials.is_digest_known:
            return None
        self._unverified = None
        self._digest = _digest(last.trust, last.keys, self._denials)
        if self._digest == last.trust.digest:
            self._asked.discard(last.gateway)
            return None
        return self.ask(last.gateway)

    def denies(self, agent: AgentIdentity) -> bool:
        """Whether this tunnel or this agent was revoked."""
        return (
            agent.tunnel_id in self._denials
            or agent_subject(agent.tunnel_id, agent.agent_id) in self._denials
        )

    def still_trusts(self, key_id: str) -> bool:
        """Whether a key that once verified a token is still good."""
        return key_id in self._key_ids

    def verify(
        self, token: str, agent: AgentIdentity, *, certificate_thumbprint: str, now_unix: float
    ) -> Believed:
        """Check a token against the certificate it came with.

        Raises:
            RemoteProtocolError: with the close code that tells the agent what to do next. The
                sentence names the fault, never the token.
        """
        if self._verifier is None:
            raise RemoteProtocolError("no gateway has spoken yet", CloseCode.NOT_READY)
        if self.denies(agent):
            raise RemoteProtocolError("the tunnel was revoked", CloseCode.REVOKED)
        try:
            claims = self._verifier.verify(
                token, certificate_thumbprint=certificate_thumbprint, now=now_unix
            )
        except TokenRefused as refused:
            raise TokenDisbelieved(refused, now_unix) from refused
        if claims.tunnel_id != agent.tunnel_id:
            raise RemoteProtocolError("the token is for another tunnel", CloseCode.TOKEN_REFUSED)
        # The denials that were dropped came from clocks that may differ from the token's.
        issued_after = self._denials.issued_after
        if issued_after and claims.issued_at <= issued_after + LEEWAY_S:
            raise TokenDisbelieved(TokenRefused(TokenFault.BEFORE_REVOCATIONS), now_unix)
        return Believed(claims, self._verifier.key_id(token))


def _rules(trust: Trust) -> tuple[int, int]:
    return trust.expired_before, trust.issued_after


def _digest(trust: Trust, keys: list[dict[str, str]], denials: DenialSet) -> str:
    return trust_digest(trust.issuer, trust.audience, keys, denials)
