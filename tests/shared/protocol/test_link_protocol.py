"""A link's handshake, liveness, control frames and end, as transcripts."""

import math
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_shared.protocol import events as ev
from byoai_shared.protocol.control import (
    MAX_STATUS_BYTES,
    Auth,
    AuthOk,
    Goaway,
    Hello,
    Presence,
    PresenceState,
    Role,
    Services,
    Status,
    decode_control,
    encode_control,
)
from byoai_shared.protocol.endpoint import Endpoint
from byoai_shared.protocol.errors import CloseCode
from byoai_shared.protocol.frames import (
    MAX_MESSAGE_BYTES,
    MAX_PAYLOAD_BYTES,
    Frame,
    FrameType,
    encode,
)
from byoai_shared.protocol.link_protocol import (
    DEAD_AFTER_S,
    HELLO_TIMEOUT_S,
    PING_INTERVAL_S,
    LinkProtocol,
)
from byoai_shared.protocol.trust import Trust, TrustHeld, split_trust
from support.transcript import (
    close_code_of,
    data,
    failure_of,
    fin,
    heard,
    hello,
    number,
    opening,
    outline,
    say,
)
from support.trusts import denials, whole

RELAY, AGENT, GATEWAY = Role.RELAY, Role.AGENT, Role.GATEWAY


class Link(LinkProtocol):
    """A link that only notes the frames of streams."""

    def __init__(self, hello: Hello, *, now: float = 0.0) -> None:
        super().__init__(hello, now=now)
        self.stream_frames: list[tuple[int, int, bytes]] = []

    def _stream_frame(self, frame: Frame, events: list[ev.Event], now: float) -> None:
        self.stream_frames.append((frame[0], frame[1], bytes(frame[2])))


def introduced(ours: Role, peer: Role) -> Link:
    link = Link(hello(ours))
    link.receive(say(hello(peer)), 0.0)
    heard(link.outbox)
    return link


# -- HELLO


def test_hello_is_the_first_thing_said_and_a_ping_the_second() -> None:
    link = Link(hello(AGENT, "a1"))
    ((kind, _, payload),) = heard(link.outbox)
    assert kind is FrameType.HELLO
    assert decode_control(Hello, payload) == hello(AGENT, "a1")
    relay = hello(RELAY, "r1")
    assert link.receive(say(relay), 0.1) == [ev.PeerIntroduced(relay)]
    assert link.peer == relay
    assert outline(heard(link.outbox)) == [(FrameType.PING, 0)]


@pytest.mark.parametrize(
    "message",
    [
        encode(FrameType.PING, 0, bytes(8)),
        say(Auth(token="t")),
        say(Goaway(code=4000)),
        say(whole(1)),
        opening(1),
        data(1, b"x"),
        number(FrameType.CREDIT, 1, 1),
        fin(1),
    ],
)
def test_nothing_is_heard_before_hello(message: bytes) -> None:
    link = Link(hello(RELAY))
    failure = failure_of(link.receive(message + say(hello(AGENT)), 0.0))
    assert failure.code is CloseCode.PROTOCOL_ERROR
    assert failure.reason.endswith("frame before HELLO")
    assert link.peer is None
    assert link.stream_frames == []


def test_hello_comes_once() -> None:
    link = introduced(RELAY, AGENT)
    assert failure_of(link.receive(say(hello(AGENT)), 0.0)).reason == "HELLO frame from agent"


@pytest.mark.parametrize("ours", list(Role))
@pytest.mark.parametrize("peer", list(Role))
def test_only_ends_meet_relays(ours: Role, peer: Role) -> None:
    link = Link(hello(ours))
    events = link.receive(say(hello(peer)), 0.0)
    if RELAY in {ours, peer} and ours is not peer:
        assert events == [ev.PeerIntroduced(hello(peer))]
    else:
        assert failure_of(events).code is CloseCode.WRONG_ROLE


def test_a_peer_without_our_version_is_told_so() -> None:
    old = Hello(role=AGENT, node="a", instance="i", versions=(2, 3))
    failure = failure_of(Link(hello(RELAY)).receive(say(old), 0.0))
    assert failure.code is CloseCode.UNSUPPORTED_VERSION
    assert failure.reason == "peer speaks versions [2, 3], we speak 1"
    newer = Hello(role=AGENT, node="a", instance="i", versions=(3, 2, 1))
    assert Link(hello(RELAY)).receive(say(newer), 0.0) == [ev.PeerIntroduced(newer)]


# What each role may say to each; the rest of the types must close the link.
EXAMPLES = {
    FrameType.HELLO: say(hello(AGENT)),
    FrameType.AUTH: say(Auth(token="t")),
    FrameType.AUTH_OK: say(AuthOk(accepted_until=1)),
    FrameType.STATUS: say(Status()),
    FrameType.TRUST: say(whole(1)),
    FrameType.TRUST_HELD: say(TrustHeld()),
    FrameType.PRESENCE: say(
        Presence(tunnel_id="t", agent_id="a", instance="i", epoch=0, state=PresenceState.GONE)
    ),
    FrameType.PING: encode(FrameType.PING, 0, bytes(8)),
    FrameType.PONG: encode(FrameType.PONG, 0, pack(">d", 0.0)),
    FrameType.GOAWAY: say(Goaway(code=4000)),
    FrameType.SERVICES: say(Services()),
    FrameType.OPEN: opening(1),
    FrameType.ACCEPT: number(FrameType.ACCEPT, 1, 1),
    FrameType.DATA: data(1, b"x"),
    FrameType.FIN: fin(1),
    FrameType.RESET: number(FrameType.RESET, 1, 1),
    FrameType.CREDIT: number(FrameType.CREDIT, 1, 1),
}
BOTH_WAYS = "PING PONG GOAWAY DATA FIN RESET CREDIT"
MAY_SAY = {
    (AGENT, RELAY): f"{BOTH_WAYS} AUTH STATUS ACCEPT",
    (GATEWAY, RELAY): f"{BOTH_WAYS} TRUST SERVICES OPEN",
    (RELAY, AGENT): f"{BOTH_WAYS} AUTH_OK OPEN",
    (RELAY, GATEWAY): f"{BOTH_WAYS} PRESENCE TRUST_HELD ACCEPT",
}


@pytest.mark.parametrize("kind", list(FrameType))
@pytest.mark.parametrize(("speaker", "listener"), list(MAY_SAY))
def test_each_role_says_only_what_is_its_own(
    speaker: Role, listener: Role, kind: FrameType
) -> None:
    link = introduced(listener, speaker)
    events = link.receive(EXAMPLES[kind], 1.0)
    if kind.name in MAY_SAY[speaker, listener].split():
        assert link.failure is None
    else:
        assert failure_of(events).reason == f"{kind.name} frame from {speaker}"
        assert failure_of(events).code is CloseCode.PROTOCOL_ERROR


# -- malformed messages


MALFORMED = {
    "nothing": b"",
    "half a header": bytes(4),
    "truncated": data(1, b"12345")[:-1],
    "oversized": pack(">II", (MAX_PAYLOAD_BYTES + 1) << 8 | FrameType.DATA, 1)
    + bytes(MAX_PAYLOAD_BYTES + 1),
    "a length that lies": pack(">II", 0xFFFFFF << 8 | FrameType.DATA, 1),
    "unknown": encode(0x42, 1, b"x"),
    "a stream's frame on 0": encode(FrameType.DATA, 0, b"x"),
    "the link's frame on 1": encode(FrameType.PING, 1, bytes(8)),
    "too long": bytes(MAX_MESSAGE_BYTES + 1),
    "PING of 7": encode(FrameType.PING, 0, bytes(7)),
    "PONG of 9": encode(FrameType.PONG, 0, bytes(9)),
    "no JSON": encode(FrameType.GOAWAY, 0, b"{"),
}


@pytest.mark.parametrize("message", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_message_ends_the_link_after_what_was_good(message: bytes) -> None:
    alone = introduced(RELAY, AGENT)
    assert close_code_of(alone, message) is CloseCode.PROTOCOL_ERROR
    if not message or len(message) > MAX_MESSAGE_BYTES:
        return
    behind = introduced(RELAY, AGENT)
    good = say(Status(in_flight=7))
    events = behind.receive(good + message + good, 0.0)
    assert events[:-1] == [ev.StatusReported(Status(in_flight=7))]
    assert failure_of(events).code is CloseCode.PROTOCOL_ERROR


def test_a_message_is_whole_frames_so_one_fed_byte_by_byte_is_refused_at_the_first() -> None:
    for message in EXAMPLES.values():
        link = introduced(RELAY, AGENT)
        first, *others = [link.receive(message[at : at + 1], 0.0) for at in range(len(message))]
        assert failure_of(first).reason == "frame header of 1 bytes where 8 were expected"
        assert others == [[]] * len(others)


def test_after_its_end_a_link_hears_nothing_and_asks_for_nothing() -> None:
    link = introduced(RELAY, AGENT)
    link.receive(b"", 0.0)
    assert link.receive(say(Status()), 1.0) == []
    assert link.tick(1000.0) == []
    assert heard(link.outbox) == []


def test_only_the_first_failure_counts() -> None:
    link = introduced(RELAY, AGENT)
    events: list[ev.Event] = []
    link.fail(CloseCode.REVOKED, "first", events)
    link.fail(CloseCode.IDLE, "second", events)
    assert events == [ev.LinkFailed(CloseCode.REVOKED, "first")]
    assert link.failure == events[0]


@given(st.lists(st.binary(max_size=64), max_size=8), st.sampled_from(list(MAY_SAY)))
def test_rubbish_never_raises(messages: list[bytes], pair: tuple[Role, Role]) -> None:
    speaker, listener = pair
    link = introduced(listener, speaker)
    for message in messages:
        events = link.receive(message, 0.0)
        assert link.failure is None or events == [] or events[-1] == link.failure


# -- liveness


def test_a_ping_leaves_every_ten_seconds() -> None:
    link = introduced(AGENT, RELAY)
    pinged_at: list[float] = []
    for now in range(1, 41):
        link.receive(encode(FrameType.PING, 0, bytes(8)), float(now))
        assert link.tick(float(now)) == []
        if (FrameType.PING, 0) in outline(heard(link.outbox)):
            pinged_at.append(now)
    assert pinged_at == [10, 20, 30, 40]
    assert PING_INTERVAL_S == 10


def test_a_ping_is_answered_with_its_own_bytes() -> None:
    link = introduced(AGENT, RELAY)
    assert link.receive(encode(FrameType.PING, 0, b"8 bytes!"), 1.0) == []
    assert heard(link.outbox) == [(FrameType.PONG, 0, b"8 bytes!")]


def test_a_link_without_a_byte_for_25_s_is_dead_and_one_byte_saves_it() -> None:
    link = introduced(AGENT, RELAY)
    assert link.tick(24.9) == []
    link.receive(data(1, b"x"), 24.9)
    assert link.tick(49.8) == []
    failure = failure_of(link.tick(49.9))
    assert failure.code is CloseCode.IDLE
    assert failure.reason == "no byte received for 25 s"


def test_no_hello_within_5_s_ends_the_link() -> None:
    link = Link(hello(RELAY), now=100.0)
    heard(link.outbox)
    assert link.tick(100.0 + HELLO_TIMEOUT_S - 0.01) == []
    assert heard(link.outbox) == []
    failure = failure_of(link.tick(100.0 + HELLO_TIMEOUT_S))
    assert failure.code is CloseCode.HANDSHAKE_TIMEOUT


def test_the_round_trip_is_smoothed() -> None:
    link = introduced(AGENT, RELAY)
    assert link.round_trip_s is None
    link.ping(1.0)
    ((_, _, payload),) = heard(link.outbox)
    assert link.receive(encode(FrameType.PONG, 0, payload), 1.08) == []
    assert link.round_trip_s == pytest.approx(0.08)
    link.ping(2.0)
    ((_, _, payload),) = heard(link.outbox)
    link.receive(encode(FrameType.PONG, 0, payload), 2.16)
    assert link.round_trip_s == pytest.approx(0.09)


@pytest.mark.parametrize("claimed", [math.nan, math.inf, -math.inf, 5.5, -1e308, 4.0 - 1e-6, 1.0])
def test_a_pong_that_answers_nothing_is_refused(claimed: float) -> None:
    link = introduced(AGENT, RELAY)
    link.ping(4.0)
    assert close_code_of(link, encode(FrameType.PONG, 0, pack(">d", claimed)), 5.0) is (
        CloseCode.PROTOCOL_ERROR
    )
    assert link.round_trip_s is None


def test_a_pong_counts_once() -> None:
    link = introduced(AGENT, RELAY)
    link.ping(4.0)
    pong = encode(FrameType.PONG, 0, pack(">d", 4.0))
    link.receive(pong, 5.0)
    assert close_code_of(link, pong, 6.0) is CloseCode.PROTOCOL_ERROR


def test_a_pong_that_comes_late_over_a_slow_line_is_still_an_answer() -> None:
    link = introduced(AGENT, RELAY)
    for now in (10.0, 20.0, 30.0, 40.0):
        link.receive(data(1, b"slowly"), now)
        link.tick(now)
    link.receive(encode(FrameType.PONG, 0, pack(">d", 0.0)), 40.0)
    assert link.failure is None
    assert link.round_trip_s == 40.0


def test_pongs_may_stay_out_for_as_long_as_other_bytes_come() -> None:
    link = introduced(AGENT, RELAY)
    for second in range(1, 3600):
        link.receive(data(1, b"x"), float(second))
        assert link.tick(float(second)) == []
    assert link.failure is None


# -- control frames


def test_each_control_frame_becomes_its_event() -> None:
    relay = introduced(RELAY, AGENT)
    assert relay.receive(say(Auth(token="t")) + say(Status(queued=1)), 0.0) == [
        ev.TokenPresented("t"),
        ev.StatusReported(Status(queued=1)),
    ]
    agent = introduced(AGENT, RELAY)
    goaway = Goaway(code=4000, reason="draining", retry_after_ms=10)
    assert agent.receive(say(AuthOk(accepted_until=9)) + say(goaway), 0.0) == [
        ev.TokenAccepted(9),
        ev.GoawayReceived(goaway),
    ]


def test_goaway_says_when_to_come_back() -> None:
    link = introduced(RELAY, AGENT)
    link.go_away(CloseCode.GOING_AWAY, "draining", retry_after_s=1.5)
    ((kind, _, payload),) = heard(link.outbox)
    assert kind is FrameType.GOAWAY
    assert decode_control(Goaway, payload) == Goaway(
        code=4000, reason="draining", retry_after_ms=1500
    )


def test_a_status_that_could_not_be_passed_on_is_refused() -> None:
    link = introduced(RELAY, AGENT)
    large = Status(models=tuple("m" * 200 for _ in range(100)))
    assert len(encode_control(large)) > MAX_STATUS_BYTES
    assert close_code_of(link, say(large)) is CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("message", "borne"),
    [(say(Auth(token="t")), 200), (say(Status()), 50), (EXAMPLES[FrameType.PING], 1000)],
)
def test_a_flood_of_control_frames_ends_the_link(message: bytes, borne: int) -> None:
    link = introduced(RELAY, AGENT)
    for _ in range(borne):
        link.receive(message, 0.0)
        assert link.failure is None
    assert close_code_of(link, message) is CloseCode.ABUSE


def test_what_is_borne_comes_back_with_time() -> None:
    link = introduced(RELAY, AGENT)
    for now in range(1000):
        link.receive(say(Auth(token="t")) * 5, float(now))
    assert link.failure is None


# -- TRUST


def test_trust_is_passed_on_part_by_part_however_many_there_are() -> None:
    link = introduced(RELAY, GATEWAY)
    gateway = Endpoint(hello(GATEWAY), now=0.0)
    gateway.receive(say(hello(RELAY)), 0.0)
    heard(gateway.outbox)
    trust = whole(3, ({"kid": "k1"},), denials(*(f"tunnel{n:020}" for n in range(5000))))
    for part in split_trust(trust):
        gateway.give_trust(part)
    parts: list[Trust] = []
    while gateway.outbox:
        for event in link.receive(gateway.outbox.take(), 0.0):
            assert isinstance(event, ev.TrustGiven)
            parts.append(event.trust)
    assert len(parts) > 5
    assert [part.part for part in parts] == list(range(len(parts)))
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
    assert tuple(denial for part in parts for denial in part.denials) == trust.denials
    assert link.failure is None


def test_a_relay_reports_what_it_believes() -> None:
    held = TrustHeld(revision=7, digest="d", wanted=True)
    link = introduced(GATEWAY, RELAY)
    assert link.receive(say(held), 0.0) == [ev.TrustReported(held)]


def test_constants_are_the_designs() -> None:
    assert (PING_INTERVAL_S, DEAD_AFTER_S, HELLO_TIMEOUT_S) == (10.0, 25.0, 5.0)
