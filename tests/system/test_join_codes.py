"""A join code is good once, for a while, and only as it was given."""

import asyncio
from collections import Counter
from datetime import timedelta

import aiohttp
import msgspec
import pytest

from byoai_shared import joincode
from byoai_shared.enrolment import EnrolRequest, EnrolResponse, decode_error
from byoai_shared.identity import tunnel_hostname
from byoai_shared.keys import make_csr, new_key, self_signed_certificate
from demo.processes import ProcessError
from demo.stack import Stack, Tunnel
from support.canaries import Canaries
from support.house import CLIENT_S, House, StackMaker

pytestmark = pytest.mark.asyncio(loop_scope="session")

MANY = 50


def mistyped(code: str) -> str:
    """One character is another one."""
    at = len(code) - 10
    return code[:at] + ("a" if code[at] != "a" else "b") + code[at + 1 :]


def enrol_request(tunnel: Tunnel) -> EnrolRequest:
    """What an agent with this code would send."""
    code = joincode.decode(tunnel.join_code)
    hostname = tunnel_hostname(tunnel.tunnel_id)
    end_to_end = self_signed_certificate(new_key(), hostname, timedelta(days=365))
    return EnrolRequest(
        tunnel_id=tunnel.tunnel_id,
        secret=code.secret.reveal(),
        csr_pem=make_csr(new_key()).decode(),
        end_to_end_certificate_pem=end_to_end.decode(),
    )


async def registered(stack: Stack, canaries: Canaries) -> Tunnel:
    """A tunnel that nobody has joined yet."""
    tunnel = await stack.register("dave")
    canaries.add(tunnel.token, tunnel.join_code)
    canaries.add(joincode.decode(tunnel.join_code).secret.reveal())
    return tunnel


async def test_a_code_used_twice_is_refused_in_plain_words(
    make_stack: StackMaker, canaries: Canaries
) -> None:
    async with make_stack() as stack:
        tunnel = await registered(stack, canaries)
        said = await stack.join(tunnel.join_code, "first", [])
        assert "joined" in said
        assert tunnel.tunnel_id in said
        with pytest.raises(ProcessError, match="used"):
            await stack.join(tunnel.join_code, "second", [])


async def test_of_fifty_at_once_one_joins(make_stack: StackMaker, canaries: Canaries) -> None:
    """The use of a code is one atomic update; the losers are told that it was used."""
    async with make_stack(gateway={"limits.join_tries_per_minute": 1000}) as stack:
        tunnel = await registered(stack, canaries)
        bodies = [msgspec.json.encode(enrol_request(tunnel)) for _ in range(MANY)]
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(CLIENT_S)) as session:

            async def enrol(body: bytes) -> bytes:
                url = f"{stack.gateway_url}/agent/v1/enrol"
                kind = {"content-type": "application/json"}
                async with session.post(url, data=body, headers=kind) as response:
                    return await response.read()

            answers = await asyncio.gather(*(enrol(body) for body in bodies))
    errors = [error for answer in answers if (error := decode_error(answer)) is not None]
    (won,) = (answer for answer in answers if decode_error(answer) is None)
    joined = msgspec.json.decode(won, type=EnrolResponse)
    canaries.add(joined.token, *joined.authentication_keys)
    assert Counter(error.code for error in errors) == {"join_code_used": MANY - 1}


async def test_a_sixth_try_within_a_minute_is_turned_away(
    make_stack: StackMaker, canaries: Canaries
) -> None:
    """Guessing is hopeless anyway; this keeps it from costing anything."""
    async with make_stack() as stack:
        tunnel = await registered(stack, canaries)
        request = msgspec.structs.replace(enrol_request(tunnel), secret="guessed" * 4)
        statuses: list[int] = []
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(CLIENT_S)) as session:
            for _ in range(6):
                url = f"{stack.gateway_url}/agent/v1/enrol"
                async with session.post(url, data=msgspec.json.encode(request)) as response:
                    statuses.append(response.status)
        assert 429 not in statuses[:5]
        assert statuses[5] == 429


async def test_a_code_that_is_too_old_is_refused(
    make_stack: StackMaker, canaries: Canaries
) -> None:
    async with make_stack(gateway={"tunnels.join_code_lifetime_s": 0.001}) as stack:
        tunnel = await registered(stack, canaries)
        with pytest.raises(ProcessError, match="expired"):
            await stack.join(tunnel.join_code, "late", [])


async def test_a_mistyped_code_is_caught_before_anything_is_sent(house: House) -> None:
    """Its checksum tells, so it is not one of the five tries a minute either."""
    with pytest.raises(ProcessError, match="damaged"):
        await house.stack.join(mistyped(house.alice.join_code), "typo", [])
