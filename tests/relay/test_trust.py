"""What a relay believes: the newest revision, within bounds, and nothing before there is one."""

import msgspec
import pytest

from byoai_relay.trust import TOO_FAR_AHEAD, Taken, TrustStore
from byoai_shared.identity import AgentIdentity
from byoai_shared.keys import new_key
from byoai_shared.protocol.errors import CloseCode, RemoteProtocolError
from byoai_shared.protocol.trust import (
    MAX_ADVANCE_MS,
    MAX_REVISION,
    SWEEP_ROWS,
    Denial,
    DenialSet,
    Trust,
    agent_subject,
    split_trust,
    trust_digest,
)
from byoai_shared.tokens import TunnelClaims, public_jwk, sign_token
from support.relays import KEY_ID
from support.trusts import AUDIENCE, ISSUER, denials, whole

KEY = new_key()
JWK = public_jwk(KEY_ID, KEY.public_key())
AGENT = AgentIdentity("abcdefghijklmnopqrstuvwxyz", "agent-1")
TUNNEL_ID = AGENT.tunnel_id
THUMBPRINT = "A" * 43
NOW = 1_800_000_000


def a_trust(revision: int = 1, *denied: Denial, issued_after: int = 0) -> Trust:
    return whole(revision, (JWK,), denied, issued_after=issued_after)


def a_change(revision: int, base: int, told: list[Denial], now: list[Denial]) -> Trust:
    """A change that sends `told` and leads to `now`."""
    held = DenialSet()
    held.apply(now, expired_before=0, issued_after=0)
    digest = trust_digest(ISSUER, AUDIENCE, (JWK,), held)
    return msgspec.structs.replace(a_trust(revision), base=base, digest=digest, denials=tuple(told))


def a_store(*given: Trust, limit: int = 1000) -> TrustStore:
    store = TrustStore(limit)
    for trust in given:
        assert take(store, trust).is_news
    return store


def take(store: TrustStore, trust: Trust, gateway: str = "gateway-1") -> Taken:
    return store.take(trust, gateway=gateway, now_unix=NOW)


def a_token(
    tunnel_id: str = TUNNEL_ID, *, thumbprint: str = THUMBPRINT, issued_at: int = NOW
) -> str:
    claims = TunnelClaims(
        issuer=ISSUER,
        audience=AUDIENCE,
        tunnel_id=tunnel_id,
        issued_at=issued_at,
        not_before=issued_at,
        expires_at=issued_at + 900,
        token_id="jti",
        certificate_thumbprint=thumbprint,
        generation=1,
    )
    return sign_token(claims, KEY, KEY_ID)


def verify(store: TrustStore, token: str, *, now: float = NOW) -> object:
    return store.verify(token, AGENT, certificate_thumbprint=THUMBPRINT, now_unix=now)


def refusal(store: TrustStore, token: str, *, now: float = NOW) -> CloseCode:
    with pytest.raises(RemoteProtocolError) as caught:
        verify(store, token, now=now)
    assert token not in str(caught.value)
    return caught.value.close_code


def test_nothing_is_believed_before_a_gateway_has_spoken() -> None:
    store = TrustStore()
    assert not store.is_known
    assert store.held.revision == 0
    assert refusal(store, a_token()) is CloseCode.NOT_READY


def test_a_token_of_a_key_in_force_is_believed() -> None:
    store = a_store(a_trust())
    believed = store.verify(a_token(), AGENT, certificate_thumbprint=THUMBPRINT, now_unix=NOW)
    assert believed.key_id == KEY_ID
    assert believed.claims.expires_at == NOW + 900
    assert store.still_trusts(KEY_ID)


def test_tokens_for_others_or_of_another_time_are_refused() -> None:
    store = a_store(a_trust())
    assert refusal(store, a_token("bcdefghijklmnopqrstuvwxyza")) is CloseCode.TOKEN_REFUSED
    assert refusal(store, a_token(thumbprint="B" * 43)) is CloseCode.TOKEN_REFUSED
    assert refusal(store, a_token(), now=NOW + 1000) is CloseCode.TOKEN_REFUSED
    assert refusal(store, "rubbish") is CloseCode.TOKEN_REFUSED


@pytest.mark.parametrize("subject", [TUNNEL_ID, agent_subject(TUNNEL_ID, AGENT.agent_id)])
def test_the_denied_are_told_that_it_is_final(subject: str) -> None:
    store = a_store(a_trust(1, *denials(subject)))
    assert store.denies(AGENT)
    assert refusal(store, a_token()) is CloseCode.REVOKED
    # And forgiven when the next revision does not name them any more.
    take(store, a_trust(2))
    verify(store, a_token())


def test_another_agent_of_the_tunnel_is_not_denied() -> None:
    store = a_store(a_trust(1, *denials(agent_subject(TUNNEL_ID, "agent-2"))))
    assert not store.denies(AGENT)
    verify(store, a_token())


def test_keys_come_complete_one_that_is_not_named_is_dropped() -> None:
    store = a_store(a_trust(), whole(2))
    assert not store.still_trusts(KEY_ID)
    assert refusal(store, a_token()) is CloseCode.TOKEN_REFUSED


@pytest.mark.parametrize("revision", [4, 5], ids=["older", "same"])
def test_trust_that_is_not_newer_is_passed_over_and_its_sender_hears_why(revision: int) -> None:
    store = a_store(a_trust(5))
    taken = take(store, a_trust(revision, *denials(TUNNEL_ID)), "gateway-2")
    assert not taken.is_news
    assert taken.reply == store.held
    assert not taken.denied
    assert not store.denies(AGENT)
    # What is believed already needs no answer.
    assert take(store, a_trust(revision), "gateway-2").reply is None


# -- changes


def test_a_change_adds_to_what_is_held() -> None:
    first, second = denials("t1", TUNNEL_ID)
    store = a_store(a_trust(1, first))
    taken = take(store, a_change(2, 1, [second], [first, second]))
    assert taken.is_news
    assert taken.denied == {TUNNEL_ID}
    assert taken.reply is None
    assert store.denial_count == 2
    # Another gateway sends the same: nothing to do.
    assert not take(store, a_change(2, 1, [second], [first, second]), "gateway-2").is_news


def test_a_change_that_does_not_lead_to_its_digest_makes_the_relay_ask_for_the_whole() -> None:
    first, second, third = denials("t1", "t2", "t3")
    store = a_store(a_trust(1, first))
    taken = take(store, a_change(2, 1, [third], [first, second, third]))
    assert taken.reply is not None
    assert taken.reply.wanted
    # Another gateway was not asked; this one was, once.
    assert not take(store, a_trust(2, first), "gateway-2").is_news
    taken = take(store, a_trust(2, first, second, third))
    assert taken.is_news
    assert taken.reply is None
    assert store.denial_count == 3
    assert not take(store, a_trust(2, first)).is_news


def test_a_change_to_what_is_not_held_is_answered_with_a_request_for_the_whole() -> None:
    store = a_store(a_trust(1))
    for trust in (a_change(9, 5, [], []), msgspec.structs.replace(a_trust(9), part=3)):
        taken = take(store, trust)
        assert not taken.is_news
        assert taken.reply is not None
        assert taken.reply.wanted
    assert store.revision == 1


def test_a_whole_that_does_not_lead_to_its_digest_is_refused() -> None:
    first, second = denials("t1", "t2")
    store = a_store(a_trust(1, first))
    lacking = msgspec.structs.replace(a_trust(2, first, second), denials=(second,))
    taken = take(store, lacking)
    assert not taken.is_news
    assert taken.reply == store.held
    assert store.revision == 1
    assert take(store, a_trust(2, first, second)).is_news


def test_parts_count_together_and_denials_of_each_at_once() -> None:
    store = a_store(a_trust(1))
    many = a_trust(2, *denials(*(f"tunnel{n:020}" for n in range(900))))
    parts = list(split_trust(many))
    assert len(parts) > 1
    for part in parts[:-1]:
        taken = take(store, part)
        assert not taken.is_news
        assert taken.denied == {denial.subject for denial in part.denials}
        # Another gateway's parts do not mix with these.
        take(store, parts[0], "gateway-2")
    assert store.revision == 1
    assert take(store, parts[-1]).is_news
    assert (store.revision, store.denial_count) == (2, 900)


def test_the_parts_of_a_link_that_went_are_forgotten() -> None:
    store = a_store(a_trust(1))
    first, *_, last = split_trust(a_trust(2, *denials(*(f"tunnel{n:020}" for n in range(900)))))
    take(store, first)
    store.forget_unfinished("gateway-1")
    assert not take(store, last).is_news


# -- work in portions


def ending(revision: int, held: DenialSet) -> Trust:
    """A change by which all denials of `many_denied` end, and that leads to `held`."""
    digest = trust_digest(ISSUER, AUDIENCE, (JWK,), held)
    told = msgspec.structs.replace(a_trust(revision), base=revision - 1, digest=digest)
    return msgspec.structs.replace(told, expired_before=NOW)


def many_denied() -> list[Denial]:
    return [Denial(f"t{n}", 5, NOW - 1) for n in range(4 * SWEEP_ROWS)]


def none_left() -> DenialSet:
    held = DenialSet()
    held.apply((), expired_before=NOW, issued_after=0)
    return held


def test_denials_that_end_at_once_cost_many_small_steps() -> None:
    store = a_store(a_trust(1, *many_denied()), limit=10_000)
    taken = take(store, ending(2, none_left()))
    assert taken == Taken(is_news=True)
    assert store.denial_count == 4 * SWEEP_ROWS
    for left in (3, 2, 1, 0):
        assert not store.is_settled
        assert store.settle() is None
        assert store.denial_count == left * SWEEP_ROWS
    assert store.is_settled
    assert store.held.digest == trust_digest(ISSUER, AUDIENCE, (JWK,), none_left())


def test_a_change_whose_digest_proves_wrong_later_makes_the_relay_ask_for_the_whole() -> None:
    store = a_store(a_trust(1, *many_denied()), limit=10_000)
    differs = none_left()
    differs.apply(denials("lacking"), expired_before=NOW, issued_after=0)
    assert take(store, ending(2, differs)).reply is None
    replies = [store.settle() for _ in range(4)]
    assert replies[:3] == [None] * 3
    assert replies[3] is not None
    assert replies[3].wanted
    assert replies[3].digest == trust_digest(ISSUER, AUDIENCE, (JWK,), none_left())
    whole_again = msgspec.structs.replace(
        a_trust(2, *denials("lacking")), expired_before=NOW, digest=ending(2, differs).digest
    )
    assert take(store, whole_again).is_news


def test_a_digest_is_not_compared_while_the_next_change_is_under_way() -> None:
    """Else the relay would ask for the whole, and report a digest that no gateway sent."""
    store = a_store(a_trust(1, *many_denied()), limit=10_000)
    ended = ending(2, none_left())
    take(store, ended)
    added = denials(*(f"tunnel{n:020}" for n in range(900)))
    then = none_left()
    then.apply(added, expired_before=NOW, issued_after=0)
    first, *others = split_trust(msgspec.structs.replace(ending(3, then), denials=added))
    assert others
    take(store, first)
    while not store.is_settled:
        assert store.settle() is None
    assert store.held.digest == ended.digest
    replies = [take(store, part).reply for part in others]
    assert replies == [None] * len(others)
    assert store.held.digest == trust_digest(ISSUER, AUDIENCE, (JWK,), then)


def test_parts_of_one_trust_that_differ_in_their_rules_are_not_believed() -> None:
    store = a_store(a_trust(1))
    parts = list(split_trust(a_trust(2, *denials(*(f"tunnel{n:020}" for n in range(900))))))
    take(store, parts[0])
    taken = take(store, msgspec.structs.replace(parts[1], expired_before=NOW))
    assert taken.reply is not None
    assert taken.reply.wanted


# -- bounds


def test_more_denials_than_there_is_room_for_never_let_the_revoked_in() -> None:
    old = Denial(TUNNEL_ID, NOW - 600, NOW + 900)
    others = [Denial(f"t{n}", NOW - 300 + n // 10, NOW + 900) for n in range(1000)]
    store = a_store(a_trust(1, old, *others), limit=1000)
    assert store.denial_count <= 1000
    assert TUNNEL_ID not in [it.subject for it in others]
    # Its denial was dropped, but tokens of its time are refused: not for good, for the others.
    assert refusal(store, a_token(issued_at=NOW - 601)) is CloseCode.TOKEN_REFUSED
    assert refusal(store, a_token(issued_at=NOW - 300)) is CloseCode.TOKEN_REFUSED
    verify(store, a_token(issued_at=NOW - 100))


def test_a_gateway_can_drop_the_oldest_denials_itself() -> None:
    store = a_store(a_trust(1, issued_after=NOW - 100))
    assert refusal(store, a_token(issued_at=NOW - 95)) is CloseCode.TOKEN_REFUSED
    verify(store, a_token(issued_at=NOW - 89))


@pytest.mark.parametrize("revision", [NOW * 1000 + MAX_ADVANCE_MS + 1, MAX_REVISION])
def test_a_revision_that_others_could_not_exceed_is_refused_without_ending_the_link(
    revision: int,
) -> None:
    store = a_store(a_trust(1))
    taken = take(store, whole(revision, issuer="evil"), "stolen")
    assert taken == Taken(reply=store.held, refusal=TOO_FAR_AHEAD)
    in_parts = msgspec.structs.replace(whole(revision, issuer="evil"), more=True)
    assert take(store, in_parts, "stolen") == Taken()
    assert store.revision == 1
    verify(store, a_token())


def test_the_highest_revision_that_is_taken_can_still_be_exceeded() -> None:
    store = a_store(a_trust(1), whole(NOW * 1000 + MAX_ADVANCE_MS, issuer="evil"))
    assert refusal(store, a_token()) is CloseCode.TOKEN_REFUSED
    better = a_trust(store.revision + 1)
    assert store.take(better, gateway="gateway-1", now_unix=NOW + 0.01).is_news
    verify(store, a_token())


@pytest.mark.parametrize(
    "key",
    [{}, {"kid": "k"}, {"kid": "k", "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}],
    ids=["empty", "a name", "no point of the curve"],
)
def test_a_key_that_cannot_be_read_changes_nothing(key: dict[str, str]) -> None:
    store = a_store(a_trust())
    with pytest.raises(RemoteProtocolError, match="TRUST with a key that cannot be read"):
        take(store, whole(2, (key,)))
    assert store.revision == 1
    verify(store, a_token())


def test_keys_without_end_are_refused() -> None:
    store = a_store(a_trust())
    endless = msgspec.structs.replace(whole(2, ({"kid": "k"},) * 4097), more=True)
    with pytest.raises(RemoteProtocolError, match="more than 4096 keys"):
        take(store, endless)
