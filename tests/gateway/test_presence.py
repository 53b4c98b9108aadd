"""What the relays say is kept per relay, and forgotten with the link to it."""

from byoai_gateway.presence import PresenceMap
from byoai_shared.protocol.control import Presence, PresenceState, Status

TUNNEL = "a" * 26


def presence(
    agent: str = "one",
    state: PresenceState = PresenceState.ONLINE,
    *,
    epoch: int = 1,
    in_flight: int = 0,
) -> Presence:
    return Presence(
        tunnel_id=TUNNEL,
        agent_id=agent,
        instance="run",
        epoch=epoch,
        state=state,
        status=Status(in_flight=in_flight),
    )


def test_a_tunnel_is_reached_by_the_relays_that_announced_it() -> None:
    known = PresenceMap()
    known.update("east", presence())
    known.update("west", presence())
    assert sorted(known.relays_of(TUNNEL)) == ["east", "west"]
    assert known.relays_of("b" * 26) == []


def test_an_agent_that_went_is_gone_from_that_relay_only() -> None:
    known = PresenceMap()
    known.update("east", presence())
    known.update("west", presence())
    known.update("east", presence(state=PresenceState.GONE))
    assert known.relays_of(TUNNEL) == ["west"]


def test_a_lost_relay_takes_all_it_said_with_it() -> None:
    known = PresenceMap()
    known.update("east", presence("one"))
    known.update("east", presence("two"))
    known.update("west", presence("two"))
    known.forget_relay("east")
    assert [(relay, seen.agent_id) for relay, seen in known.agents_of(TUNNEL)] == [("west", "two")]
    known.forget_relay("west")
    assert known.relays_of(TUNNEL) == []


def test_the_less_busy_way_comes_first() -> None:
    known = PresenceMap()
    known.update("east", presence(in_flight=7))
    known.update("west", presence(in_flight=2))
    assert known.relays_of(TUNNEL) == ["west", "east"]
    known.update("west", presence(state=PresenceState.CHANGED, in_flight=9))
    assert known.relays_of(TUNNEL) == ["east", "west"]


def test_what_a_relay_says_twice_or_late_is_harmless() -> None:
    known = PresenceMap()
    known.update("east", presence(state=PresenceState.GONE))
    known.update("east", presence(epoch=1))
    known.update("east", presence(epoch=2))
    assert [seen.epoch for _, seen in known.agents_of(TUNNEL)] == [2]
    known.forget_relay("nobody")
