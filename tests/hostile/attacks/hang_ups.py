"""Requests that are left before they are answered, by the hundred."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from demo.stack import HOST, Tunnel
from hostile.bystander import chat, tell
from hostile.hostile_agent import linked
from hostile.place import ANSWER_S, ATTACKER, NotRefused, Place, Size

LOOK_S: Final = 0.002
HEAD_BYTES: Final = 4096

Reached = Callable[[], Awaitable[int]]
"""Counts the requests that got as far as the attacker's own part."""


async def at_a_silent_agent(place: Place, size: Size) -> str:
    """Hang up at an agent that neither takes nor refuses a stream."""
    async with linked(place, takes_streams=False) as agent:

        async def reached() -> int:
            return len(agent.opened)

        statuses = await _hang_ups(place, place.mallory, size.hang_ups, reached)
        if agent.session.closed.done():
            return f"link ended: {agent.session.closed.result()}"
        throttled = await place.metric("relay", "byoai_relay_streams_throttled_total")
        if not throttled or not statuses:
            raise NotRefused(f"all of {size.hang_ups:,} streams were opened and reset")
        return f"{len(agent.opened):,} streams reset, {_refused(statuses)}"


async def at_a_silent_model_server(place: Place, size: Size) -> str:
    """Hang up at a model server that takes requests and never answers."""

    async def reached() -> int:
        return int(await tell(place.server_port, "/silent"))

    before = await reached()
    statuses = await _hang_ups(place, place.trudy, size.hang_ups, reached)
    return f"{await reached() - before:,} requests given up, {_refused(statuses)}"


async def _hang_ups(place: Place, tunnel: Tunnel, count: int, reached: Reached) -> Counter[str]:
    """Ask and leave, one request after the other; count the answers by status."""
    request = chat(tunnel, place.gateway_port, "silent")
    statuses: Counter[str] = Counter()
    for _ in range(count):
        async with asyncio.timeout(ANSWER_S):
            if status := await _hang_up(place, request, reached):
                statuses[status] += 1
    return statuses


async def _hang_up(place: Place, request: bytes, reached: Reached) -> str:
    """Leave as soon as the request got there; or return the status if it did not."""
    before = await reached()
    reader, writer = await asyncio.open_connection(
        HOST, place.gateway_port, local_addr=(ATTACKER, 0)
    )
    writer.write(request)
    answer = asyncio.ensure_future(reader.read(HEAD_BYTES))
    try:
        while await reached() == before and not answer.done():
            await asyncio.wait((answer,), timeout=LOOK_S)
        return answer.result()[9:12].decode() if answer.done() else ""
    finally:
        answer.cancel()
        writer.transport.abort()


def _refused(statuses: Counter[str]) -> str:
    counts = ", ".join(f"{count:,} answered {status}" for status, count in sorted(statuses.items()))
    return counts or "none refused"
