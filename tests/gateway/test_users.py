from typing import Any

import jwt
import msgspec
import pytest

from byoai_gateway.config import UsersSection
from byoai_gateway.users import User, UserRefused, Users, mint
from byoai_shared.secret import Secret
from support.control import USERS_SECRET, FakeClock

SETTINGS = UsersSection(secret=Secret(USERS_SECRET))


def users(clock: FakeClock, settings: UsersSection = SETTINGS) -> Users:
    return Users(settings, None, clock)


def token(
    clock: FakeClock, *, key: Any = USERS_SECRET, algorithm: str = "HS256", **claims: Any
) -> str:
    payload = {"sub": "alice", "plan": "pro", "exp": int(clock()) + 3600, **claims}
    payload = {name: value for name, value in payload.items() if value is not None}
    return jwt.encode(payload, key, algorithm)


async def test_a_good_token_names_user_and_plan(clock: FakeClock) -> None:
    user = await users(clock).authenticate("Bearer " + token(clock))
    assert user == User("alice", "pro")
    assert user.may_self_host


async def test_a_minted_token_is_good(clock: FakeClock) -> None:
    settings = UsersSection(
        secret=Secret(USERS_SECRET), issuer="app", audience="byoai", user_claim="uid"
    )
    minted = mint(User("bob", "free"), settings, clock(), 60)
    user = await users(clock, settings).authenticate("Bearer " + minted)
    assert user == User("bob", "free")
    assert not user.may_self_host


async def test_claims_are_configurable(clock: FakeClock) -> None:
    settings = UsersSection(secret=Secret(USERS_SECRET), user_claim="uid", plan_claim="tier")
    one = token(clock, uid=42, tier="pro")
    assert await users(clock, settings).authenticate(f"bearer {one}") == User("42", "pro")


async def test_without_a_plan_there_is_none(clock: FakeClock) -> None:
    for plan in (None, 7, ["pro"]):
        user = await users(clock).authenticate("Bearer " + token(clock, plan=plan))
        assert user.plan == ""


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic YTpi", "Bearer nonsense", "Bearer a.b.c"]
)
async def test_no_token_is_refused(clock: FakeClock, header: str | None) -> None:
    with pytest.raises(UserRefused):
        await users(clock).authenticate(header)


@pytest.mark.parametrize(
    ("claims", "complaint"),
    [
        ({"exp": None}, "exp"),
        ({"exp": "9999999999"}, "exp"),
        ({"exp": True}, "exp"),
        ({"exp": 1e300}, "exp"),
        ({"exp": 1000}, "expired"),
        ({"nbf": 9_999_999_999}, "not valid yet"),
        ({"nbf": "soon"}, "nbf"),
        ({"sub": None}, "sub"),
        ({"sub": ""}, "sub"),
        ({"sub": True}, "sub"),
        ({"sub": "x" * 256}, "sub"),
        ({"sub": ["alice"]}, "sub"),
    ],
)
async def test_each_faulty_claim_is_refused(
    clock: FakeClock, claims: dict[str, Any], complaint: str
) -> None:
    payload = {"sub": "alice", "plan": "pro", "exp": int(clock()) + 3600, **claims}
    payload = {name: value for name, value in payload.items() if value is not None}
    # `jwt.encode` would refuse some of these itself.
    signed = jwt.api_jws.encode(msgspec.json.encode(payload), USERS_SECRET, "HS256")
    with pytest.raises(UserRefused, match=complaint):
        await users(clock).authenticate("Bearer " + signed)


async def test_another_secret_another_algorithm_or_none_is_refused(clock: FakeClock) -> None:
    good = token(clock)
    unsigned = jwt.encode({"sub": "alice", "exp": int(clock()) + 60}, "", "none")
    for bad in (
        token(clock, key="another secret of thirty-two bytes."),
        token(clock, key=USERS_SECRET * 2, algorithm="HS512"),
        unsigned,
        good[:-2] + ("AA" if not good.endswith("AA") else "BB"),
    ):
        with pytest.raises(UserRefused, match="does not hold"):
            await users(clock).authenticate("Bearer " + bad)


async def test_a_huge_token_is_refused_unread(clock: FakeClock) -> None:
    with pytest.raises(UserRefused, match="longer"):
        await users(clock).authenticate("Bearer " + "a" * 10_000)


@pytest.mark.parametrize(
    ("claims", "is_good"),
    [
        ({"iss": "app", "aud": "byoai"}, True),
        ({"iss": "app", "aud": ["other", "byoai"]}, True),
        ({"iss": "app", "aud": "other"}, False),
        ({"iss": "app", "aud": "byoai-and-more"}, False),
        ({"iss": "app"}, False),
        ({"iss": "other", "aud": "byoai"}, False),
        ({"aud": "byoai"}, False),
    ],
)
async def test_issuer_and_audience_are_required_when_configured(
    clock: FakeClock, claims: dict[str, Any], *, is_good: bool
) -> None:
    settings = UsersSection(secret=Secret(USERS_SECRET), issuer="app", audience="byoai")
    header = "Bearer " + token(clock, **claims)
    if is_good:
        await users(clock, settings).authenticate(header)
    else:
        with pytest.raises(UserRefused):
            await users(clock, settings).authenticate(header)


async def test_a_remembered_token_ends_with_its_own_time(clock: FakeClock) -> None:
    one = users(clock)
    header = "Bearer " + token(clock, exp=int(clock()) + 20)
    await one.authenticate(header)
    clock.advance(49)  # within the leeway
    await one.authenticate(header)
    clock.advance(1)
    with pytest.raises(UserRefused, match="expired"):
        await one.authenticate(header)


async def test_a_token_is_checked_once_a_minute_however_often_it_comes(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = 0
    decode = jwt.decode

    def counted(*args: Any, **named: Any) -> Any:
        nonlocal checked
        checked += 1
        return decode(*args, **named)

    monkeypatch.setattr(jwt, "decode", counted)
    one = users(clock)
    header = "Bearer " + token(clock)
    for _ in range(1000):
        await one.authenticate(header)
    assert checked == 1
    clock.advance(60)
    await one.authenticate(header)
    assert checked == 2


async def test_what_is_remembered_is_bounded(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("byoai_gateway.users._MOST_REMEMBERED", 10)
    one = users(clock)
    for number in range(50):
        await one.authenticate("Bearer " + token(clock, sub=f"user-{number}"))
        assert len(one._remembered) <= 10


async def test_a_gateway_without_a_secret_knows_nobody_and_mints_nothing(
    clock: FakeClock,
) -> None:
    with pytest.raises(UserRefused, match=r"users\.secret"):
        await users(clock, UsersSection()).authenticate("Bearer " + token(clock))
    with pytest.raises(UserRefused, match=r"users\.secret"):
        mint(User("alice", "pro"), UsersSection(), clock(), 60)
