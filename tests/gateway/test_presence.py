"""What the relays say is kept per relay, and forgotten with the link to it."""

import re
from dataclasses import dataclass

import pytest

from byoai_gateway import presence as presence_module
from byoai_gateway.absence import Absence
from byoai_gateway.presence import RETURN_S, PresenceMap
from byoai_shared.protocol.control import GoneReason, Presence, PresenceState, Status

TUNNEL = "a" * 26


def presence(
    agent: str = "one",
    state: PresenceState = PresenceState.ONLINE,
    *,
    epoch: int = 1,
    in_flight: int = 0,
    gone_reason: str = "",
) -> Presence:
    return Presence(
        tunnel_id=TUNNEL,
        agent_id=agent,
        instance="run",
        epoch=epoch,
        state=state,
        status=Status(in_flight=in_flight),
        gone_reason=gone_reason,
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


def test_what_agents_say_of_themselves_is_what_was_heard_last() -> None:
    known = PresenceMap()
    assert known.statuses_of(TUNNEL) == {}
    known.update("east", presence("one", in_flight=1))
    known.update("west", presence("one", in_flight=2))
    known.update("west", presence("two", in_flight=3))
    assert {name: it.in_flight for name, it in known.statuses_of(TUNNEL).items()} == {
        "one": 2,
        "two": 3,
    }
    known.update("west", presence("two", state=PresenceState.CHANGED, in_flight=4))
    assert known.statuses_of(TUNNEL)["two"].in_flight == 4
    known.forget_relay("west")
    assert {name: it.in_flight for name, it in known.statuses_of(TUNNEL).items()} == {"one": 1}
    known.update("east", presence("one", state=PresenceState.GONE))
    assert known.statuses_of(TUNNEL) == {}


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


# -- why a tunnel cannot be reached


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def settled(*relays: str, of: tuple[str, ...] = ("east", "west")) -> tuple[PresenceMap, Clock]:
    """Links to these relays, for longer than agents take to come back."""
    clock = Clock()
    known = PresenceMap(of, clock)
    for relay in relays:
        known.connected(relay)
    clock.now += RETURN_S
    return known, clock


def told(absence: Absence) -> tuple[str, GoneReason | None, float | None]:
    return absence.code, absence.reason, absence.left_s


def test_without_a_relay_it_is_our_own_fault() -> None:
    """Whatever is known of the agent: it may be connected to them all."""
    known, _ = settled("east")
    known.update("east", presence())
    known.update("east", presence(state=PresenceState.GONE, gone_reason="stopped"))
    known.forget_relay("east")
    absence = known.absence(TUNNEL)
    assert told(absence) == ("no_relay_connected", None, None)
    assert "which is not the cause" in absence.message
    assert "byoai-agent run" not in absence.message
    assert absence.retry_after_s == 5.0


def test_a_gateway_without_relays_says_so() -> None:
    assert "no relays configured" in PresenceMap().absence(TUNNEL).message


@pytest.mark.parametrize("reason", GoneReason)
def test_an_agent_that_left_is_told_with_when_and_why(reason: GoneReason) -> None:
    known, clock = settled("east", "west")
    known.update("east", presence())
    known.update("east", presence(state=PresenceState.GONE, gone_reason=reason.value))
    clock.now += 42
    absence = known.absence(TUNNEL)
    assert told(absence) == ("agent_offline", reason, 42.0)
    assert re.fullmatch(r"your agent disconnected 42 s ago: [^;]+; .+", absence.message)


def test_only_the_last_to_leave_counts() -> None:
    known, clock = settled("east", "west")
    known.update("east", presence())
    known.update("west", presence())
    known.update("east", presence(state=PresenceState.GONE, gone_reason="drained"))
    clock.now += 10
    known.update("west", presence(state=PresenceState.GONE, gone_reason="network_lost"))
    assert told(known.absence(TUNNEL)) == ("agent_offline", GoneReason.NETWORK_LOST, 0.0)


def test_an_agent_that_came_back_has_not_left() -> None:
    known, _ = settled("east", "west")
    known.update("east", presence())
    known.update("east", presence(state=PresenceState.GONE, gone_reason="stopped"))
    known.update("east", presence())
    known.forget_relay("west")
    assert known.absence(TUNNEL).code == "agent_unreachable"  # its relay said otherwise just now


def test_an_agent_may_be_at_a_relay_that_is_not_reached() -> None:
    known, _ = settled("east")
    absence = known.absence(TUNNEL)
    assert told(absence) == ("agent_unreachable", None, None)
    assert "(1 of 2)" in absence.message


FINAL = (GoneReason.STOPPED, GoneReason.REVOKED, GoneReason.REPLACED)


@pytest.mark.parametrize("reason", [it for it in GoneReason if it not in FINAL])
def test_an_agent_that_lost_one_relay_may_be_at_another_that_is_not_reached(
    reason: GoneReason,
) -> None:
    known, clock = settled("east", "west")
    known.update("east", presence())
    known.update("west", presence())
    clock.now += 100
    known.forget_relay("west")  # our own link; the agent is still there
    known.update("east", presence(state=PresenceState.GONE, gone_reason=reason.value))
    assert told(known.absence(TUNNEL)) == ("agent_unreachable", None, None)
    assert "(1 of 2)" in known.absence(TUNNEL).message
    known.connected("west")  # which says in a moment whether it has the agent
    assert known.absence(TUNNEL).code == "agent_unreachable"
    clock.now += RETURN_S
    assert told(known.absence(TUNNEL)) == ("agent_offline", reason, RETURN_S)


@pytest.mark.parametrize("reason", FINAL)
def test_an_agent_that_ended_is_at_no_other_relay(reason: GoneReason) -> None:
    known, _ = settled("east")
    known.update("east", presence())
    known.update("east", presence(state=PresenceState.GONE, gone_reason=reason.value))
    assert told(known.absence(TUNNEL)) == ("agent_offline", reason, 0.0)


def test_agents_get_time_to_come_back_by_a_relay_that_was_started_again() -> None:
    known, clock = settled("east", of=("east",))
    known.update("east", presence())
    known.forget_relay("east")
    clock.now += 3
    known.connected("east")
    assert known.absence(TUNNEL).code == "agent_unreachable"
    clock.now += RETURN_S
    absence = known.absence(TUNNEL)
    assert told(absence) == ("agent_offline", None, RETURN_S + 3)


def test_an_agent_that_was_not_seen_since_the_start_is_not_connected() -> None:
    known, _ = settled("east", "west")
    absence = known.absence(TUNNEL)
    assert told(absence) == ("agent_offline", None, None)
    assert "byoai-agent run" in absence.message


def test_a_newer_relays_reason_is_no_riddle() -> None:
    known, _ = settled("east", "west")
    known.update("east", presence())
    known.update("east", presence(state=PresenceState.GONE, gone_reason="abducted"))
    assert known.absence(TUNNEL).reason is GoneReason.NETWORK_LOST


def test_departures_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_module, "MAX_DEPARTURES", 1)
    known, _ = settled("east", "west")
    for letter in "xy":
        there = presence(state=PresenceState.GONE, gone_reason="stopped")
        for state in (PresenceState.ONLINE, PresenceState.GONE):
            known.update(
                "east", Presence(letter * 26, "one", "run", 1, state, gone_reason=there.gone_reason)
            )
    assert known.absence("y" * 26).reason is GoneReason.STOPPED
    assert known.absence("x" * 26).reason is None
