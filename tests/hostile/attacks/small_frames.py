"""An agent that sends as many of the smallest frames as its link takes."""

import asyncio
from typing import Final

from demo.stack import HOST
from hostile.bystander import chat
from hostile.hostile_agent import CREDIT_OF_ONE, DATA_OF_ONE, HostileAgent, linked
from hostile.place import ANSWER_S, ATTACKER, NotRefused, Place, Size

FRAMES_PER_S: Final = 150_000
"""Of more than this the attacker does not get rid even if nothing slows him."""
AGAIN_S: Final = 0.2
SLOWED: Final = "byoai_relay_links_slowed_total"


async def credits_of_one_byte(place: Place, size: Size) -> str:
    """Flood a stream that a client waits for with CREDIT of one byte."""
    return await _flood(place, size, CREDIT_OF_ONE, is_reset=False)


async def data_of_one_byte(place: Place, size: Size) -> str:
    """Flood it with DATA of one byte."""
    return await _flood(place, size, DATA_OF_ONE, is_reset=False)


async def frames_after_reset(place: Place, size: Size) -> str:
    """Flood a stream that the gateway has reset."""
    return await _flood(place, size, DATA_OF_ONE, is_reset=True)


async def _flood(place: Place, size: Size, kind: str, *, is_reset: bool) -> str:
    before = await place.metric("relay", SLOWED)
    async with (
        asyncio.timeout(10 * ANSWER_S),
        linked(place, takes_streams=not is_reset) as agent,
    ):
        client = await _asking(place, agent)
        stream_id = agent.opened[0]
        if is_reset:
            client.transport.abort()
            await agent.reset(stream_id)
        most_s = 2.0 + size.frames / FRAMES_PER_S
        sent = await agent.send(kind, stream_id, size.frames, most_s)
        slowed = int(await place.metric("relay", SLOWED) - before)
        client.transport.abort()
        lost = agent.session.closed
        ended = f", link closed: {lost.result()}" if lost.done() else ""
    if not slowed and not ended:
        raise NotRefused(f"{sent:,} frames of {kind} left at full speed")
    return f"{sent:,} of {size.frames:,} frames left, link slowed {slowed} times{ended}"


async def _asking(place: Place, agent: HostileAgent) -> asyncio.StreamWriter:
    """Have the gateway open a stream for a client that waits; again while it will not."""
    address = (HOST, place.gateway_port)
    while True:
        reader, writer = await asyncio.open_connection(*address, local_addr=(ATTACKER, 0))
        writer.write(chat(place.mallory, place.gateway_port, "silent"))
        answer = asyncio.ensure_future(reader.read(1))
        opened = asyncio.ensure_future(agent.stream(0))
        await asyncio.wait((answer, opened), return_when=asyncio.FIRST_COMPLETED)
        for waiting in (answer, opened):
            waiting.cancel()
        if opened.done():
            return writer
        writer.transport.abort()
        await asyncio.sleep(AGAIN_S)
