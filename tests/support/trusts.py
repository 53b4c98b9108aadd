"""TRUST as a gateway would make it, for tests that have no gateway."""

from collections.abc import Sequence

from byoai_shared.protocol.trust import Denial, DenialSet, Trust, trust_digest

ISSUER, AUDIENCE = "https://gateway.test", "byoai-relay"
DENIED_AT, DENIED_UNTIL = 1_000, 2**40


def denials(*subjects: str) -> tuple[Denial, ...]:
    """Denials that end long after any test."""
    return tuple(Denial(subject, DENIED_AT, DENIED_UNTIL) for subject in subjects)


def whole(
    revision: int,
    keys: Sequence[dict[str, str]] = (),
    denied: Sequence[Denial] = (),
    *,
    issuer: str = ISSUER,
    audience: str = AUDIENCE,
    expired_before: int = 0,
    issued_after: int = 0,
) -> Trust:
    """Everything that a relay is to believe."""
    held = DenialSet()
    held.apply(denied, expired_before=expired_before, issued_after=issued_after)
    return Trust(
        revision=revision,
        base=0,
        digest=trust_digest(issuer, audience, keys, held),
        issuer=issuer,
        audience=audience,
        keys=tuple(keys),
        denials=tuple(denied),
        expired_before=expired_before,
        issued_after=issued_after,
    )
