"""What a relay believes: the newest snapshot, and nothing before there is one."""

from collections.abc import Callable

import pytest

from byoai_relay.trust import TrustStore
from byoai_shared.keys import new_key
from byoai_shared.protocol.control import Trust
from byoai_shared.protocol.errors import CloseCode, RemoteProtocolError
from byoai_shared.tokens import TunnelClaims, public_jwk, sign_token
from support.relays import AUDIENCE, ISSUER, KEY_ID

KEY = new_key()
TUNNEL_ID = "abcdefghijklmnopqrstuvwxyz"
THUMBPRINT = "A" * 43
NOW = 1_800_000_000


def a_trust(revision: int = 1, **more: tuple[str, ...]) -> Trust:
    return Trust(
        revision=revision,
        issuer=ISSUER,
        audience=AUDIENCE,
        keys=(public_jwk(KEY_ID, KEY.public_key()),),
        denied_tunnels=more.get("tunnels", ()),
        denied_certificates=more.get("certificates", ()),
    )


def a_token(tunnel_id: str = TUNNEL_ID, *, thumbprint: str = THUMBPRINT) -> str:
    claims = TunnelClaims(
        issuer=ISSUER,
        audience=AUDIENCE,
        tunnel_id=tunnel_id,
        issued_at=NOW,
        not_before=NOW,
        expires_at=NOW + 900,
        token_id="jti",
        certificate_thumbprint=thumbprint,
        generation=1,
    )
    return sign_token(claims, KEY, KEY_ID)


def verify(store: TrustStore, token: str, *, now: float = NOW) -> object:
    return store.verify(token, tunnel_id=TUNNEL_ID, certificate_thumbprint=THUMBPRINT, now_unix=now)


def refusal(store: TrustStore, token: str, *, now: float = NOW) -> CloseCode:
    with pytest.raises(RemoteProtocolError) as caught:
        verify(store, token, now=now)
    assert token not in str(caught.value)
    return caught.value.close_code


def test_nothing_is_believed_before_a_gateway_has_spoken() -> None:
    store = TrustStore()
    assert not store.is_known
    assert refusal(store, a_token()) is CloseCode.NOT_READY


def test_a_token_of_a_key_in_force_is_believed() -> None:
    store = TrustStore()
    assert store.replace(a_trust())
    believed = store.verify(
        a_token(), tunnel_id=TUNNEL_ID, certificate_thumbprint=THUMBPRINT, now_unix=NOW
    )
    assert believed.key_id == KEY_ID
    assert believed.claims.expires_at == NOW + 900
    assert store.still_trusts(KEY_ID)


def test_tokens_for_others_or_of_another_time_are_refused() -> None:
    store = TrustStore()
    store.replace(a_trust())
    assert refusal(store, a_token("bcdefghijklmnopqrstuvwxyza")) is CloseCode.TOKEN_REFUSED
    assert refusal(store, a_token(thumbprint="B" * 43)) is CloseCode.TOKEN_REFUSED
    assert refusal(store, a_token(), now=NOW + 1000) is CloseCode.TOKEN_REFUSED
    assert refusal(store, "rubbish") is CloseCode.TOKEN_REFUSED


@pytest.mark.parametrize(
    "snapshot",
    [lambda: a_trust(tunnels=(TUNNEL_ID,)), lambda: a_trust(certificates=(THUMBPRINT,))],
    ids=["tunnel", "certificate"],
)
def test_the_denied_are_told_that_it_is_final(snapshot: Callable[[], Trust]) -> None:
    store = TrustStore()
    store.replace(snapshot())
    assert store.denies(TUNNEL_ID, THUMBPRINT)
    assert refusal(store, a_token()) is CloseCode.REVOKED
    # And forgiven when the next snapshot does not name them any more.
    store.replace(a_trust(2))
    verify(store, a_token())


def test_a_snapshot_is_complete_a_key_it_does_not_name_is_dropped() -> None:
    store = TrustStore()
    store.replace(a_trust())
    store.replace(Trust(revision=2, issuer=ISSUER, audience=AUDIENCE))
    assert not store.still_trusts(KEY_ID)
    assert refusal(store, a_token()) is CloseCode.TOKEN_REFUSED


def test_an_older_snapshot_is_passed_over_and_one_of_the_same_number_is_not() -> None:
    store = TrustStore()
    assert store.replace(a_trust(5))
    assert not store.replace(a_trust(4, tunnels=(TUNNEL_ID,)))
    assert not store.denies(TUNNEL_ID, THUMBPRINT)
    assert store.replace(a_trust(5, tunnels=(TUNNEL_ID,)))
    assert store.denies(TUNNEL_ID, THUMBPRINT)
    assert store.revision == 5


@pytest.mark.parametrize(
    "key",
    [{}, {"kid": "k"}, {"kid": "k", "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}],
    ids=["empty", "a name", "no point of the curve"],
)
def test_a_key_that_cannot_be_read_changes_nothing(key: dict[str, str]) -> None:
    store = TrustStore()
    store.replace(a_trust())
    with pytest.raises(RemoteProtocolError, match="TRUST with a key that cannot be read"):
        store.replace(Trust(revision=2, issuer="i", audience="a", keys=(key,)))
    assert store.revision == 1
    verify(store, a_token())
