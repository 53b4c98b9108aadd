import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_gateway.config import GatewayConfig, TokensSection
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.server import kept_up
from byoai_gateway.signing import (
    SigningKey,
    UnknownSigningKey,
    active_key,
    retired_keys,
    successor_from,
)
from byoai_shared.protocol.trust import Trust
from byoai_shared.tokens import (
    TokenFault,
    TokenRefused,
    TokenVerifier,
    TunnelClaims,
    keys_from_jwks,
)
from support.control import FakeClock

DAY = 86_400
RULES = TokensSection()


def test_the_first_key_signs_at_once() -> None:
    assert successor_from([], 500, RULES) == 500


def test_the_next_key_is_made_a_day_before_its_turn() -> None:
    keys = [SigningKey("a", 0)]
    assert successor_from(keys, 29 * DAY - 1, RULES) is None
    assert successor_from(keys, 29 * DAY, RULES) == 30 * DAY


def test_a_gateway_that_was_off_still_publishes_a_day_ahead() -> None:
    assert successor_from([SigningKey("a", 0)], 50 * DAY, RULES) == 51 * DAY


def test_the_newest_key_whose_time_has_come_signs() -> None:
    keys = [SigningKey("a", 0), SigningKey("b", 100), SigningKey("c", 200)]
    assert active_key(keys, 150) == keys[1]
    assert active_key(keys, -1) is None


def test_a_key_is_retired_after_its_last_token() -> None:
    old, new = SigningKey("a", 0), SigningKey("b", 30 * DAY)
    assert retired_keys([old, new], 30 * DAY + 3600) == []
    assert retired_keys([old, new], 30 * DAY + 3611) == [old]


@given(st.lists(st.integers(1, 4 * DAY), max_size=60))
def test_there_is_always_one_that_signs_and_it_was_published_ahead(steps: list[int]) -> None:
    keys: list[SigningKey] = []
    published_at: dict[str, float] = {}
    now = 0
    for step in [0, *steps]:
        now += step
        if (begins := successor_from(keys, now, RULES)) is not None:
            keys.append(SigningKey(f"k{len(published_at)}", begins))
            published_at[keys[-1].kid] = now
        for key in retired_keys(keys, now):
            keys.remove(key)
        active = active_key(keys, now)
        assert active is not None
        assert active.kid == "k0" or now - published_at[active.kid] >= RULES.publish_ahead_s
        assert len(keys) <= 3


def token(control: ControlPlane) -> str:
    now = int(control.clock())
    claims = TunnelClaims(
        issuer=control.config.tokens.issuer,
        audience=control.config.tokens.audience,
        tunnel_id="a" * 26,
        issued_at=now,
        not_before=now,
        expires_at=now + 900,
        token_id="one",
        certificate_thumbprint="thumbprint",
        generation=1,
    )
    return control.signing_keys.sign(claims)


def verify(trust: Trust, token: str, now: float) -> None:
    keys = keys_from_jwks(trust.keys)
    verifier = TokenVerifier(issuer=trust.issuer, audience=trust.audience, keys=keys)
    verifier.verify(token, certificate_thumbprint="thumbprint", now=now)


async def test_tokens_hold_with_what_relays_were_told_hours_ago_through_three_rotations(
    control: ControlPlane, clock: FakeClock
) -> None:
    kids = set[str]()
    told = await control.trust.since(0)
    for _ in range(4 * 93):
        await control.renew()
        verify(told, token(control), clock())
        told = await control.trust.since(0)
        kids |= {key.kid for key in control.signing_keys.known}
        assert len(control.signing_keys.known) <= 2
        clock.advance(DAY / 4)
    assert len(kids) == 4


async def test_a_dropped_key_is_trusted_no_more_and_another_signs_at_once(
    control: ControlPlane, clock: FakeClock
) -> None:
    before = await control.trust.since(0)
    leaked = token(control)
    verify(before, leaked, clock())

    await control.signing_keys.drop(control.signing_keys.known[0].kid)
    assert await control.trust.refresh()
    after = await control.trust.since(0)
    assert after.revision > before.revision
    with pytest.raises(TokenRefused) as caught:
        verify(after, leaked, clock())
    assert caught.value.fault is TokenFault.UNKNOWN_KEY
    verify(after, token(control), clock())


async def test_a_key_dropped_by_another_process_is_used_no_more(
    config: GatewayConfig, control: ControlPlane, clock: FakeClock
) -> None:
    (key,) = control.signing_keys.known
    async with open_control_plane(config, clock) as other:
        await other.signing_keys.drop(key.kid)
    async with kept_up(control):
        revision = control.trust.held.revision
        async with asyncio.timeout(50):
            await control.trust.changed(revision)
            while control.signing_keys.known == [key]:  # noqa: ASYNC110 -- it tells nobody
                await asyncio.sleep(0)
    trust = await control.trust.since(0)
    assert key.kid not in {jwk["kid"] for jwk in trust.keys}
    verify(trust, token(control), clock())


async def test_dropping_an_unknown_key_names_those_there_are(control: ControlPlane) -> None:
    (key,) = control.signing_keys.known
    with pytest.raises(UnknownSigningKey, match=key.kid):
        await control.signing_keys.drop("nonsense")
    assert control.signing_keys.known == [key]
