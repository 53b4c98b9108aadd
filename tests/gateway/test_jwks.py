import asyncio
import json
import ssl
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest
import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from byoai_gateway.config import UsersSection
from byoai_gateway.jwks import FORMER_KEYS, JwksKeys, JwksUnavailable, fetch_keys
from byoai_gateway.refusals import Refusal
from byoai_gateway.users import User, UserRefused, Users
from support.control import FakeClock
from support.logged import Logged

EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)
SMALL_RSA_KEY = rsa.generate_private_key(65537, 1024)


def jwk(kid: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> dict[str, Any]:
    public = (
        ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        if isinstance(key, ec.EllipticCurvePrivateKey)
        else RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    )
    return {**public, "kid": kid, "use": "sig"}


@dataclass
class KeyServer:
    """The main application's JWKS address."""

    url: str = ""
    keys: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    asked: int = 0
    status: int = 200
    body: bytes | None = None
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)
    is_open: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, _: web.Request) -> web.Response:
        self.asked += 1
        self.was_asked.set()
        await self.is_open.wait()
        if self.body is not None:
            return web.Response(body=self.body, status=self.status)
        return web.json_response({"keys": self.keys}, status=self.status)


@pytest.fixture
async def server() -> AsyncGenerator[KeyServer]:
    fake = KeyServer(keys=[jwk("ec", EC_KEY), jwk("rsa", RSA_KEY)])
    fake.is_open.set()
    app = web.Application()
    app.router.add_get("/jwks", fake.answer)
    async with TestServer(app) as listening:
        fake.url = str(listening.make_url("/jwks"))
        yield fake


def users(server: KeyServer, clock: FakeClock) -> Users:
    return Users(UsersSection(jwks_url=server.url), JwksKeys(server.url, clock), clock)


def header(clock: FakeClock, key: Any, algorithm: str, kid: str | None, sub: str = "alice") -> str:
    claims = {"sub": sub, "plan": "pro", "exp": int(clock()) + 36_000}
    headers = {"kid": kid} if kid is not None else {}
    return "Bearer " + jwt.encode(claims, key, algorithm, headers=headers)


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"), [(EC_KEY, "ES256", "ec"), (RSA_KEY, "RS256", "rsa")]
)
async def test_tokens_of_both_families_hold(
    server: KeyServer, clock: FakeClock, key: Any, algorithm: str, kid: str
) -> None:
    user = await users(server, clock).authenticate(header(clock, key, algorithm, kid))
    assert user == User("alice", "pro")


async def test_keys_are_fetched_once_for_many_tokens(server: KeyServer, clock: FakeClock) -> None:
    one = users(server, clock)
    for number in range(20):
        await one.authenticate(header(clock, EC_KEY, "ES256", "ec", f"user-{number}"))
    assert server.asked == 1


async def test_a_new_key_is_found_at_once_but_made_up_ones_cause_no_storm(
    server: KeyServer, clock: FakeClock
) -> None:
    one = users(server, clock)
    await one.authenticate(header(clock, EC_KEY, "ES256", "ec"))
    fresh = ec.generate_private_key(ec.SECP256R1())
    server.keys = [jwk("fresh", fresh)]
    clock.advance(31)
    await one.authenticate(header(clock, fresh, "ES256", "fresh"))
    for number in range(20):
        with pytest.raises(UserRefused, match="not known"):
            await one.authenticate(header(clock, fresh, "ES256", f"made-up-{number}"))
    assert server.asked == 2


async def test_a_key_that_was_withdrawn_is_refused_after_minutes(
    server: KeyServer, clock: FakeClock
) -> None:
    one = users(server, clock)
    token = header(clock, EC_KEY, "ES256", "ec")
    await one.authenticate(token)
    server.keys = []
    clock.advance(601)
    with pytest.raises(UserRefused, match="not known"):
        await one.authenticate(token)


@pytest.mark.parametrize("body", [b"", b"not json", b'{"keys": 7}', b"[" * 300_000])
async def test_a_broken_answer_leaves_the_keys_as_they_were(
    server: KeyServer, clock: FakeClock, body: bytes
) -> None:
    one = users(server, clock)
    token = header(clock, EC_KEY, "ES256", "ec")
    await one.authenticate(token)
    clock.advance(3600)
    server.body = body
    assert await one.authenticate(token) == User("alice", "pro")
    clock.advance(3600)
    server.status = 500
    assert await one.authenticate(token) == User("alice", "pro")
    assert server.asked == 3


async def test_while_the_address_does_not_answer_no_token_is_called_bad(
    server: KeyServer, clock: FakeClock
) -> None:
    one = users(server, clock)
    token = header(clock, EC_KEY, "ES256", "ec")
    server.status = 500
    for _ in range(3):
        with pytest.raises(Refusal) as caught:
            await one.authenticate(token)
        assert (caught.value.status, caught.value.retry_after_s) == (503, 2)
    assert server.asked == 1
    server.status = 200
    clock.advance(3)
    assert await one.authenticate(token) == User("alice", "pro")
    with pytest.raises(UserRefused, match="not known"):
        await one.authenticate(header(clock, EC_KEY, "ES256", "made-up"))


async def test_a_client_that_leaves_while_keys_are_fetched_makes_no_token_bad(
    server: KeyServer, clock: FakeClock
) -> None:
    one = users(server, clock)
    token = header(clock, EC_KEY, "ES256", "ec")
    server.is_open.clear()
    first = asyncio.create_task(one.authenticate(token))
    await server.was_asked.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    server.is_open.set()
    with pytest.raises(Refusal):
        await one.authenticate(token)
    clock.advance(3)
    assert await one.authenticate(token) == User("alice", "pro")


async def test_a_public_key_is_not_taken_as_a_shared_secret(
    server: KeyServer, clock: FakeClock
) -> None:
    secret = b"thirty-two bytes of somebody's choice"
    server.keys = [{"kty": "oct", "kid": "oct", "k": "dGhpcnR5LXR3by1ieXRlcw", "alg": "HS256"}]
    one = users(server, clock)
    for kid in ("oct", "ec"):
        with pytest.raises(UserRefused):
            await one.authenticate(header(clock, secret, "HS256", kid))


async def test_weak_and_foreign_keys_are_left_out(server: KeyServer, clock: FakeClock) -> None:
    server.keys = [
        jwk("small", SMALL_RSA_KEY),
        {**jwk("encrypts", EC_KEY), "use": "enc"},
        {"kid": "nonsense", "kty": "EC"},
        {"kty": "EC"},
        jwk("ec", EC_KEY),
    ]
    keys = JwksKeys(server.url, clock)
    await keys.key(header(clock, EC_KEY, "ES256", "ec").removeprefix("Bearer "))
    assert list(keys._keys) == ["ec"]


async def test_a_token_without_a_key_id_is_refused(server: KeyServer, clock: FakeClock) -> None:
    with pytest.raises(UserRefused, match="names no key"):
        await users(server, clock).authenticate(header(clock, EC_KEY, "ES256", None))


async def test_until_keys_have_come_it_says_that_no_user_can_sign_in(
    server: KeyServer, clock: FakeClock
) -> None:
    keys = JwksKeys(server.url, clock)
    assert "users.jwks_url has not answered" in await keys.why_not()
    server.status = 500
    await keys.fetch_first()
    await keys.fetch_first()
    assert server.asked == 1, "not more often than every 2 s"
    assert "users.jwks_url has not answered" in await keys.why_not()
    server.status, server.keys = 200, []
    clock.advance(3)
    await keys.fetch_first()
    assert "users.jwks_url has no usable key" in await keys.why_not()
    server.keys = [jwk("ec", EC_KEY)]
    clock.advance(31)
    await keys.fetch_first()
    assert await keys.why_not() == ""
    clock.advance(3600)
    await keys.fetch_first()
    assert server.asked == 3, "later keys are fetched when a token asks for them"


async def test_it_stays_ready_when_the_address_goes_away_later(
    server: KeyServer, clock: FakeClock
) -> None:
    keys = JwksKeys(server.url, clock)
    one = Users(UsersSection(jwks_url=server.url), keys, clock)
    token = header(clock, EC_KEY, "ES256", "ec")
    await one.authenticate(token)
    server.status = 500
    clock.advance(3600)
    await one.authenticate(token)
    assert server.asked == 2
    assert await keys.why_not() == ""


@pytest.mark.parametrize(
    ("status", "body", "complaint"),
    [
        (404, b"", "status 404"),
        (302, b"", "status 302"),
        (200, b"<html>", "not a JSON Web Key Set"),
        (200, b" " * 1_100_000, "limit"),
    ],
)
async def test_what_is_no_key_set_is_explained(
    server: KeyServer, status: int, body: bytes, complaint: str
) -> None:
    server.status, server.body = status, body
    with pytest.raises(JwksUnavailable, match=complaint):
        await fetch_keys(server.url)


async def test_an_address_where_nothing_listens_is_explained() -> None:
    with pytest.raises(JwksUnavailable, match="did not answer"):
        await fetch_keys("http://127.0.0.1:9/jwks")


async def test_a_failure_is_logged_once_a_minute_with_the_setting(
    server: KeyServer, clock: FakeClock, logged: Logged
) -> None:
    keys = JwksKeys(server.url, clock)
    server.status = 500
    for _ in range(10):
        await keys.fetch_first()
        clock.advance(3)
    (said,) = logged.lines("users.jwks_failed")
    assert said["setting"] == "users.jwks_url"
    assert "no user can sign in" in said["next"]
    clock.advance(60)
    await keys.fetch_first()
    assert len(logged.lines("users.jwks_failed")) == 2


ODD_VALUES: tuple[object, ...] = (None, 7, 1.5, True, [], {}, "", "A", "é", "AAAA" * 2000)


@pytest.mark.parametrize("name", ["kty", "crv", "x", "y", "n", "e", "alg", "use", "kid", "d"])
@pytest.mark.parametrize("kid", ["ec", "rsa"])
async def test_a_key_of_any_shape_leaves_the_others_usable(
    server: KeyServer, name: str, kid: str
) -> None:
    sound = server.keys
    odd = [{**key, name: value} for key in sound for value in ODD_VALUES if key["kid"] == kid]
    server.body = json.dumps({"keys": [*odd, {}, *sound]}).encode()
    assert {"ec", "rsa"} <= (await fetch_keys(server.url)).keys.keys()


async def test_unusable_keys_are_warned_about_once_and_the_others_work(
    server: KeyServer, clock: FakeClock, logged: Logged
) -> None:
    sound = [jwk("ec", EC_KEY), jwk("rsa", RSA_KEY)]
    server.keys = [jwk("small", SMALL_RSA_KEY), {**sound[1], "kid": "none", "alg": "none"}, *sound]
    one = users(server, clock)
    for _ in range(5):
        clock.advance(601)
        assert await one.authenticate(header(clock, EC_KEY, "ES256", "ec")) == User("alice", "pro")
    assert server.asked == 5
    (said,) = logged.lines("users.jwks_keys_ignored")
    assert said["level"] == "warning"
    assert said["setting"] == "users.jwks_url"
    assert "1: an RSA key without 2048 to 8192 bits" in said["reason"]
    assert "1: not a key that can be read" in said["reason"]
    assert "the other 2 keys are used" in said["next"]
    server.keys = [{**sound[0], "kid": None}, *sound]
    clock.advance(601)
    await one.authenticate(header(clock, EC_KEY, "ES256", "ec"))
    assert len(logged.lines("users.jwks_keys_ignored")) == 2, "what is new is told"


async def test_a_set_of_unusable_keys_leaves_the_former_ones_in_use(
    server: KeyServer, clock: FakeClock, logged: Logged
) -> None:
    keys = JwksKeys(server.url, clock)
    one = Users(UsersSection(jwks_url=server.url), keys, clock)
    sound, token = server.keys, header(clock, EC_KEY, "ES256", "ec")
    await one.authenticate(token)
    server.keys = [{**key, "alg": "none"} for key in sound]
    for _ in range(3):
        clock.advance(601)
        assert await one.authenticate(token) == User("alice", "pro")
    assert server.asked == 4
    assert keys.warnings() == (FORMER_KEYS,)
    assert await keys.why_not() == "", "its users can sign in"
    (said,) = logged.lines("users.jwks_keys_ignored")
    assert said["next"] == FORMER_KEYS
    with pytest.raises(Refusal):  # not called bad: the usable key may be about to come
        await one.authenticate(header(clock, EC_KEY, "ES256", "other"))
    server.keys = sound
    clock.advance(601)
    await one.authenticate(token)
    assert keys.warnings() == ()


async def test_thousands_of_keys_leave_each_of_them_usable(
    server: KeyServer, clock: FakeClock
) -> None:
    key = jwk("ec", EC_KEY)
    server.keys = [*({**key, "kid": f"ec-{n}", "alg": "none"} for n in range(2000))]
    server.keys += [{**key, "kid": f"good-{n}"} for n in range(3000)]
    one = users(server, clock)
    for kid in ("good-0", "good-2999"):
        assert await one.authenticate(header(clock, EC_KEY, "ES256", kid, kid)) == User(kid, "pro")
    with pytest.raises(UserRefused, match="not known"):
        await one.authenticate(header(clock, EC_KEY, "ES256", "ec-1"))


async def test_keys_are_fetched_without_a_key_log(
    server: KeyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)  # pyright: ignore[reportUnknownMemberType]
    trusted = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(trusted))
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys.log"))
    app = web.Application()
    app.router.add_get("/jwks", server.answer)
    listening = TestServer(app)
    await listening.start_server(ssl=context)
    try:
        found = await fetch_keys(str(listening.make_url("/jwks")))
    finally:
        await listening.close()
    assert found.keys.keys() == {"ec", "rsa"}
    assert list(tmp_path.iterdir()) == [trusted]
