from byoai_gateway.status import fingerprint, show_tunnel
from byoai_gateway.tunnel_rows import Agent, Tunnel
from byoai_shared.protocol.control import Presence, PresenceState, Status, UpstreamHealth
from support.control import MODEL, end_to_end_pem

TUNNEL = Tunnel("a" * 26, "alice", MODEL, created_at=100, is_locked=False)
PEM = end_to_end_pem(TUNNEL.tunnel_id)


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
    shown = show_tunnel(TUNNEL, [agent("one")], places, 1000)
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
    shown = show_tunnel(TUNNEL, [agent("one"), agent("two"), agent("three")], places, 1000)
    assert shown.models == ("a", "b", "c")
    assert shown.health is UpstreamHealth.DEGRADED
    assert shown.in_flight == 3
    assert shown.round_trip_ms is None
    assert [it.online for it in shown.agents] == [True, True, False]


def test_a_relay_that_refuses_a_newer_token_needs_attention() -> None:
    refused = place("r2", "one", token_refusal="relay clock differs by about 3600 s")
    shown = show_tunnel(TUNNEL, [agent("one")], [place("r1", "one"), refused], 1000)
    (sentence,) = shown.needs_attention
    assert "the relay r2 refused the newest token of agent one: relay clock differs" in sentence
    assert show_tunnel(TUNNEL, [agent("one")], [place("r1", "one")], 1000).needs_attention == ()


def test_a_removed_agent_that_a_relay_still_shows_does_not_count() -> None:
    shown = show_tunnel(TUNNEL, [agent("one")], [place("r1", "removed")], 1000)
    assert not shown.online
    assert shown.relays == ()


def test_each_agent_shows_the_fingerprint_of_its_pinned_key_and_its_tokens_age() -> None:
    (shown,) = show_tunnel(TUNNEL, [agent("one")], [], 1000).agents
    assert shown.key_fingerprint == fingerprint(PEM)
    assert shown.token_age_s == 100


def test_a_locked_tunnel_says_so() -> None:
    locked = Tunnel("a" * 26, "alice", MODEL, created_at=100, is_locked=True)
    assert show_tunnel(locked, [], [], 1000).state == "locked"
