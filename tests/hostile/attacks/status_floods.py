"""An agent that reports the longest list of models again and again, on one link after another."""

import asyncio
from typing import Final

from byoai_shared.protocol.control import Status
from hostile.hostile_agent import linked
from hostile.place import ANSWER_S, NotRefused, Place, Size

MODELS: Final = tuple(f"{number:03}" + "m" * 200 for number in range(78))
"""As many as fit a STATUS."""
PER_LINK: Final = 60
"""More than one link's error budget bears."""
MOST_WAITING_BYTES: Final = 16 * 1024 * 1024
"""Of all links of the relay, the bystander's streams included."""
SLOWED: Final = "byoai_relay_links_slowed_total"
WAITING: Final = "byoai_relay_buffered_bytes"


async def on_many_links(place: Place, size: Size) -> str:
    """Send STATUS of 16 KiB; each link is slowed or closed, and the gateway keeps its own."""
    lost_before = links_lost(place)
    slowed_before = await place.metric("relay", SLOWED)
    token = await place.account.token()  # gateways limit how many an agent may fetch
    closed = 0
    most_waiting = 0.0
    for _ in range(size.status_links):
        async with (
            asyncio.timeout(ANSWER_S),
            linked(place, takes_streams=False, token=token) as agent,
        ):
            for number in range(PER_LINK):
                if agent.session.closed.done():
                    break
                agent.session.send_status(Status(models=MODELS, queued=number))
                await asyncio.sleep(0)
            most_waiting = max(most_waiting, await place.metric("relay", WAITING))
            closed += agent.session.closed.done()
    slowed = int(await place.metric("relay", SLOWED) - slowed_before)
    if most_waiting > MOST_WAITING_BYTES:
        raise NotRefused(f"{most_waiting:,.0f} bytes waited at the relay")
    if links_lost(place) != lost_before:
        raise NotRefused("the gateway lost its link to the relay")
    if not slowed + closed:
        raise NotRefused(f"{size.status_links * PER_LINK:,} STATUS were taken at full speed")
    return (
        f"{size.status_links} links: {slowed} slowed, {closed} closed, "
        f"{most_waiting:,.0f} bytes waited"
    )


def links_lost(place: Place) -> int:
    """Count how often the gateway lost the link that it shares among all users."""
    return sum(event["event"] == "relay.lost" for event in place.stack.gateway.events)
