from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from byoai_gateway.absence import Absence, Departure, left, no_relay, not_connected
from byoai_gateway.agent_instances import Instance
from byoai_gateway.status import fingerprint, show_tunnel
from byoai_gateway.tunnel_rows import Agent, Tunnel
from byoai_shared.protocol.control import (
    GoneReason,
    Presence,
    PresenceState,
    Status,
    UpstreamHealth,
)
from support.control import MODEL, end_to_end_pem

TUNNEL = Tunnel("a" * 26, "alice", MODEL, created_at=100)
PEM = end_to_end_pem(TUNNEL.tunnel_id)


@dataclass
class Directory:
    """What the relays say."""

    places: Sequence[tuple[str, Presence]] = ()
    why: Absence = field(default_factory=not_connected)

    def agents_of(self, tunnel_id: str) -> Sequence[tuple[str, Presence]]:
        assert tunnel_id == TUNNEL.tunnel_id
        return self.places

    def absence(self, tunnel_id: str) -> Absence:
        assert tunnel_id == TUNNEL.tunnel_id
        return self.why


NOWHERE = Directory()


def agent(agent_id: str) -> Agent:
    return Agent(
        agent_id=agent_id,
        hostname="gpu-1",
        agent_version="0.1.0",
        end_to_end_pem=PEM,
        generation=1,
        enrolled_at=100,
        token_issued_at=900,
        token_expires_at=1800,
        certificate_expires_at=5000,
    )


def place(
    relay: str,
    agent_id: str,
    round_trip_us: int | None = None,
    status: Status | None = None,
    token_refusal: str = "",
) -> tuple[str, Presence]:
    presence = Presence(
        tunnel_id=TUNNEL.tunnel_id,
        agent_id=agent_id,
        instance="i",
        epoch=1,
        state=PresenceState.ONLINE,
        status=status or Status(),
        round_trip_us=round_trip_us,
        token_refusal=token_refusal,
    )
    return relay, presence


def test_an_agent_on_two_relays_is_counted_once() -> None:
    status = Status(models=("m",), in_flight=3, queued=1, capacity=8)
    places = [place("r1", "one", 2000, status), place("r2", "one", 1000, status)]
    shown = show_tunnel(TUNNEL, [agent("one")], Directory(places), 1000)
    assert (shown.in_flight, shown.queued, shown.capacity) == (3, 1, 8)
    assert shown.relays == ("r1", "r2")
    assert shown.round_trip_ms == 1.0


def test_two_agents_are_added_up_and_the_better_one_decides_the_health() -> None:
    places = [
        place(
            "r1", "one", None, Status(models=("b", "a"), health=UpstreamHealth.DOWN, in_flight=1)
        ),
        place(
            "r1", "two", None, Status(models=("c",), health=UpstreamHealth.DEGRADED, in_flight=2)
        ),
    ]
    shown = show_tunnel(
        TUNNEL, [agent("one"), agent("two"), agent("three")], Directory(places), 1000
    )
    assert shown.models == ("a", "b", "c")
    assert shown.health is UpstreamHealth.DEGRADED
    assert shown.in_flight == 3
    assert shown.round_trip_ms is None
    assert [it.online for it in shown.agents] == [True, True, False]


def test_a_relay_that_refuses_a_newer_token_needs_attention() -> None:
    refused = place("r2", "one", token_refusal="relay clock differs by about 3600 s")
    shown = show_tunnel(TUNNEL, [agent("one")], Directory([place("r1", "one"), refused]), 1000)
    (sentence,) = shown.needs_attention
    assert "the relay r2 refused the newest token of agent one: relay clock differs" in sentence
    accepted = Directory([place("r1", "one")])
    assert show_tunnel(TUNNEL, [agent("one")], accepted, 1000).needs_attention == ()


def test_a_removed_agent_that_a_relay_still_shows_does_not_count() -> None:
    shown = show_tunnel(TUNNEL, [agent("one")], Directory([place("r1", "removed")]), 1000)
    assert not shown.online
    assert shown.relays == ()


def test_each_agent_shows_the_fingerprint_of_its_pinned_key_and_its_tokens_age() -> None:
    (shown,) = show_tunnel(TUNNEL, [agent("one")], NOWHERE, 1000).agents
    assert shown.key_fingerprint == fingerprint(PEM)
    assert shown.token_age_s == 100


def test_a_tunnel_is_locked_when_all_of_its_agents_are() -> None:
    locked = replace(agent("one"), locked_at=950, old_key_host="copy")
    shown = show_tunnel(TUNNEL, [locked, agent("two")], NOWHERE, 1000)
    assert shown.state == "active"
    assert [it.state for it in shown.agents] == ["locked", "active"]
    assert show_tunnel(TUNNEL, [locked], NOWHERE, 1000).state == "locked"
    assert show_tunnel(TUNNEL, [], NOWHERE, 1000).state == "active"


def test_a_locked_agent_shows_the_cause_and_the_advice() -> None:
    locked = replace(agent("one"), locked_at=950, old_key_used_at=950, old_key_host="copy")
    (shown,) = show_tunnel(TUNNEL, [locked], NOWHERE, 1000).agents
    problem = shown.problem
    assert problem is not None
    assert (problem.code, problem.since, problem.hosts) == ("agent_locked", 950, ("copy",))
    assert "host 'copy'" in problem.message
    assert "byoai-agent join CODE --replace" in problem.message


def test_two_hosts_with_one_state_are_shown_by_name() -> None:
    runs = (Instance("b", "gpu-2", 910, 960), Instance("a", "gpu-1", 100, 950))
    (shown,) = show_tunnel(TUNNEL, [replace(agent("one"), runs=runs)], NOWHERE, 1000).agents
    problem = shown.problem
    assert problem is not None
    assert (problem.code, problem.since) == ("identity_shared", 910)
    assert problem.hosts == ("gpu-1", "gpu-2")
    assert "host 'gpu-1' and host 'gpu-2' run with the same state" in problem.message


def test_a_clone_that_kept_its_name_is_shown_as_well() -> None:
    runs = (Instance("b", "gpu", 910, 960), Instance("a", "gpu", 100, 950))
    (shown,) = show_tunnel(TUNNEL, [replace(agent("one"), runs=runs)], NOWHERE, 1000).agents
    assert shown.problem is not None
    assert "two hosts named 'gpu'" in shown.problem.message


def test_an_old_key_that_was_refused_is_shown_for_a_day() -> None:
    refused = replace(agent("one"), old_key_used_at=1000, old_key_host="restored")
    for now, code in ((1000 + 86_399, "old_key_used"), (1000 + 86_400, None)):
        (shown,) = show_tunnel(TUNNEL, [refused], NOWHERE, now).agents
        assert (shown.problem.code if shown.problem else None) == code


def test_an_absent_tunnel_says_whose_fault_it_is() -> None:
    network = left(Departure(5.0, GoneReason.NETWORK_LOST), 47.0)
    shown = show_tunnel(TUNNEL, [agent("one")], Directory(why=network), 1000).offline
    assert shown is not None
    assert (shown.code, shown.since) == ("agent_offline", 958)
    assert (shown.reason, shown.retry_after_s) == (GoneReason.NETWORK_LOST, 5)
    ours = show_tunnel(TUNNEL, [agent("one")], Directory(why=no_relay(2)), 1000).offline
    assert ours is not None
    assert (ours.code, ours.since, ours.reason) == ("no_relay_connected", None, None)


def test_a_tunnel_without_agents_or_with_locked_ones_needs_no_relay_to_say_so() -> None:
    locked = replace(agent("one"), locked_at=950)
    for agents, code in (([], "agent_never_joined"), ([locked], "agent_locked")):
        shown = show_tunnel(TUNNEL, agents, Directory(why=no_relay(2)), 1000).offline
        assert shown is not None
        assert shown.code == code


def test_a_tunnel_that_is_online_has_no_reason_not_to_be() -> None:
    shown = show_tunnel(TUNNEL, [agent("one")], Directory([place("r1", "one")]), 1000)
    assert shown.offline is None
