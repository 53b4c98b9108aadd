"""A join code is good once, for a while, and only as it was given."""

import asyncio
from pathlib import Path

import pytest

from demo.processes import ProcessError
from support.canaries import Canaries
from support.house import House, StackMaker

pytestmark = pytest.mark.asyncio(loop_scope="session")


def mistyped(code: str) -> str:
    """One character is another one."""
    at = len(code) - 10
    return code[:at] + ("a" if code[at] != "a" else "b") + code[at + 1 :]


async def test_a_code_used_twice_is_refused_in_plain_words(
    make_stack: StackMaker, canaries: Canaries
) -> None:
    async with make_stack() as stack:
        tunnel = await stack.register("dave")
        canaries.add(tunnel.token, tunnel.join_code)
        await stack.join(tunnel.join_code, "first")
        with pytest.raises(ProcessError, match=r"already been used|was used"):
            await stack.join(tunnel.join_code, "second")


async def test_of_fifty_at_once_one_joins(
    make_stack: StackMaker, canaries: Canaries, tmp_path: Path
) -> None:
    async with make_stack(gateway={"limits.enrolments_per_min": 1000}) as stack:
        tunnel = await stack.register("dave")
        canaries.add(tunnel.token, tunnel.join_code)
        outcomes = await asyncio.gather(
            *(stack.join(tunnel.join_code, f"agent-{n}") for n in range(50)),
            return_exceptions=True,
        )
    assert sum(isinstance(outcome, str) for outcome in outcomes) == 1
    assert all(isinstance(outcome, str | ProcessError) for outcome in outcomes)


async def test_a_code_that_is_too_old_is_refused(
    make_stack: StackMaker, canaries: Canaries
) -> None:
    async with make_stack(gateway={"lifetimes.join_code_s": 1}) as stack:
        tunnel = await stack.register("dave")
        canaries.add(tunnel.token, tunnel.join_code)
        await asyncio.sleep(1.1)
        with pytest.raises(ProcessError, match="expired"):
            await stack.join(tunnel.join_code, "late")


async def test_a_mistyped_code_is_caught_before_anything_is_sent(
    house: House, canaries: Canaries
) -> None:
    """Its checksum tells, so it is not one of the five tries a minute either."""
    with pytest.raises(ProcessError, match="mistyped"):
        await house.stack.join(mistyped(house.alice.join_code), "typo")
