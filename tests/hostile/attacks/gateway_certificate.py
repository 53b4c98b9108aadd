"""A thief has a gateway's certificate and sends relays a TRUST that no other can follow."""

import asyncio
from typing import Final

from byoai_shared.link.errors import LinkLost, LinkRefused
from byoai_shared.protocol.errors import CloseCode
from demo.processes import output_of
from demo.stack import command_path
from hostile.hostile_agent import linked
from hostile.place import ANSWER_S, NotRefused, Place, Size
from hostile.stolen import NAME, Thief, steal

YEAR_S: Final = 365 * 86_400.0
HOURS_S: Final = 20 * 3600.0
REVISION: Final = "byoai_relay_trust_revision"


async def poisoned_trust(place: Place, _size: Size) -> str:
    """Send the highest revision, then the highest that is believed; revoke a tunnel after it."""
    thief = await steal(place)
    poison = thief.trust(HOURS_S)
    async with thief.linked() as session, linked(place, takes_streams=True) as agent:
        session.send_trust(thief.trust(YEAR_S))
        session.send_trust(poison)
        await place.reaches("relay", REVISION, poison.revision + 1, ANSWER_S)
        path = f"/api/tunnel/{place.mallory.tunnel_id}"
        await place.stack.call("DELETE", path, place.mallory.token)
        async with asyncio.timeout(ANSWER_S):
            lost = await agent.session.closed
    if lost.code is not CloseCode.REVOKED:
        raise NotRefused(f"after it, a revoked tunnel's link ended with {lost}")
    return "a year ahead: refused; hours ahead: overtaken, and a revocation still arrives"


async def removed(place: Place, _size: Size) -> str:
    """Revoke the stolen certificate by command, while its holder is linked."""
    thief = await steal(place)
    async with thief.linked() as session:
        await _revoke(place)
        async with asyncio.timeout(ANSWER_S):
            lost = await session.closed
    if lost.code is not CloseCode.REVOKED:
        raise NotRefused(f"the link of a revoked certificate ended with {lost}")
    await _stays_out(thief)
    return "link closed by certificates revoke, and refused afterwards"


async def _revoke(place: Place) -> None:
    await output_of(
        [
            command_path("byoai-gateway"),
            *("certificates", "revoke", "gateway", NAME),
            *("--config", str(place.stack.directory / "gateway.toml")),
        ]
    )


async def _stays_out(thief: Thief) -> None:
    try:
        async with thief.linked() as session, asyncio.timeout(ANSWER_S):
            lost = await session.closed
    except (LinkRefused, LinkLost):
        return
    if lost.code is not CloseCode.REVOKED:
        raise NotRefused(f"a revoked certificate was taken again, until {lost}")
