"""Streams at the two ends: transcripts of their lives, and of peers that break the rules."""

from collections import defaultdict
from itertools import pairwise
from struct import pack
from unittest.mock import ANY

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byoai_shared.protocol import endpoint as endpoint_module
from byoai_shared.protocol import events as ev
from byoai_shared.protocol.control import Open, Role, Status, decode_control, encode_control
from byoai_shared.protocol.credit import INITIAL_CREDIT, MAX_WINDOW
from byoai_shared.protocol.endpoint import Endpoint
from byoai_shared.protocol.errors import CloseCode, LocalProtocolError, ResetCode
from byoai_shared.protocol.frames import (
    MAX_CREDIT,
    MAX_PAYLOAD_BYTES,
    MAX_STREAM_ID,
    FrameType,
    decode_u32,
    encode,
)
from support.transcript import (
    Said,
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

ACCEPT, CREDIT, DATA = FrameType.ACCEPT, FrameType.CREDIT, FrameType.DATA
FIN, OPEN, RESET = FrameType.FIN, FrameType.OPEN, FrameType.RESET
REFUSED, CANCELLED, FLOW = ResetCode.REFUSED, ResetCode.CANCELLED, ResetCode.FLOW_CONTROL


def an_agent(*, max_streams: int = 64, initial_credit: int = INITIAL_CREDIT) -> Endpoint:
    agent = Endpoint(
        hello(Role.AGENT, max_streams=max_streams, initial_credit=initial_credit), now=0.0
    )
    agent.receive(say(hello(Role.RELAY)), 0.0)
    heard(agent.outbox)
    return agent


def a_gateway(*, initial_credit: int = INITIAL_CREDIT) -> Endpoint:
    gateway = Endpoint(hello(Role.GATEWAY, initial_credit=initial_credit), now=0.0)
    gateway.receive(say(hello(Role.RELAY)), 0.0)
    heard(gateway.outbox)
    return gateway


def with_stream(agent: Endpoint, stream_id: int = 1, credit: int = INITIAL_CREDIT) -> Endpoint:
    agent.receive(opening(stream_id, credit=credit), 0.0)
    agent.accept(stream_id)
    heard(agent.outbox)
    return agent


def resets(said: list[Said]) -> list[tuple[int, ResetCode]]:
    return [
        (stream_id, ResetCode(decode_u32(memoryview(payload))))
        for kind, stream_id, payload in said
        if kind is RESET
    ]


# -- lives of streams


def test_a_stream_is_opened_taken_used_and_closed_from_the_gateways_side() -> None:
    gateway = a_gateway()
    assert gateway.open("tunnel", 0.0) == 1
    ((kind, stream_id, payload),) = heard(gateway.outbox)
    assert (kind, stream_id) == (OPEN, 1)
    assert decode_control(Open, payload) == Open(credit=INITIAL_CREDIT, tunnel_id="tunnel")

    assert gateway.open("tunnel", 0.0, "agent-1") == 2
    ((_, _, payload),) = heard(gateway.outbox)
    named = Open(credit=INITIAL_CREDIT, tunnel_id="tunnel", agent_id="agent-1")
    assert decode_control(Open, payload) == named

    gateway.send(1, b"early")
    assert heard(gateway.outbox) == []  # nothing before the agent's credit is known
    assert gateway.receive(number(ACCEPT, 1, 100), 0.1) == [ev.StreamAccepted(1)]
    assert heard(gateway.outbox) == [(DATA, 1, b"early")]

    assert gateway.receive(data(1, b"answer"), 0.2) == [ev.DataReceived(1, b"answer")]  # type: ignore[arg-type] # a view equals its bytes
    gateway.finish(1)
    assert heard(gateway.outbox) == [(FIN, 1, b"")]
    assert gateway.holds(1)
    assert gateway.receive(fin(1), 0.3) == [ev.StreamFinished(1)]
    assert not gateway.holds(1)
    assert heard(gateway.outbox) == []


def test_a_stream_is_taken_by_the_agent_with_its_own_credit() -> None:
    agent = an_agent(initial_credit=1000)
    assert agent.receive(opening(1, credit=5), 0.0) == [ev.StreamOpened(1, "gateway")]
    agent.accept(1)
    agent.send(1, b"123456789")
    assert heard(agent.outbox) == [(ACCEPT, 1, pack(">I", 1000)), (DATA, 1, b"12345")]
    assert agent.unsent_bytes(1) == 4
    agent.receive(number(CREDIT, 1, 3), 0.0)
    assert heard(agent.outbox) == [(DATA, 1, b"678")]


def test_the_agent_refuses_a_stream_with_a_code() -> None:
    agent = an_agent()
    agent.receive(opening(1), 0.0)
    agent.reset(1, REFUSED)
    assert resets(heard(agent.outbox)) == [(1, REFUSED)]
    assert agent.holds(1)  # until the other side has closed as well
    assert agent.receive(number(RESET, 1, CANCELLED), 0.0) == []
    assert not agent.holds(1)
    assert heard(agent.outbox) == []


def test_what_was_written_leaves_before_fin() -> None:
    agent = with_stream(an_agent(), credit=4)
    agent.send(1, b"123456")
    agent.finish(1)
    agent.send(1, b"too late")
    assert heard(agent.outbox) == [(DATA, 1, b"1234")]
    agent.receive(number(CREDIT, 1, 10), 0.0)
    assert heard(agent.outbox) == [(DATA, 1, b"56"), (FIN, 1, b"")]


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
def test_half_close_leaves_the_other_half_open(order: str) -> None:
    agent = with_stream(an_agent())
    if order == "ours first":
        agent.finish(1)
        (event,) = agent.receive(data(1, b"still here"), 0.0)
        assert isinstance(event, ev.DataReceived)
        agent.send(1, b"never")
        assert agent.receive(fin(1), 0.0) == [ev.StreamFinished(1)]
        assert heard(agent.outbox) == [(FIN, 1, b"")]
    else:
        assert agent.receive(fin(1), 0.0) == [ev.StreamFinished(1)]
        agent.send(1, b"still here")
        agent.finish(1)
        assert heard(agent.outbox) == [(DATA, 1, b"still here"), (FIN, 1, b"")]
    assert agent.stream_count == 0


def test_a_large_write_is_cut_into_frames() -> None:
    agent = with_stream(an_agent())
    agent.send(1, bytes(2 * MAX_PAYLOAD_BYTES + 1))
    assert [len(payload) for _, _, payload in heard(agent.outbox)] == [32768, 32768, 1]


def test_finishing_and_resetting_are_idempotent_and_know_no_strangers() -> None:
    agent = with_stream(an_agent())
    agent.finish(1)
    agent.finish(1)
    agent.reset(1, CANCELLED)
    agent.reset(1, CANCELLED)
    agent.finish(9)
    agent.reset(9, CANCELLED)
    agent.send(9, b"x")
    agent.consume(9, 1, 0.0)
    assert outline(heard(agent.outbox)) == [(RESET, 1)]


# -- RESET


def test_a_reset_is_answered_exactly_once() -> None:
    agent = with_stream(an_agent())
    agent.send(1, b"never sent")
    assert agent.receive(number(RESET, 1, CANCELLED), 0.0) == [ev.StreamAborted(1, CANCELLED)]
    agent.reset(1, CANCELLED)
    agent.finish(1)
    assert outline(heard(agent.outbox)) == [(RESET, 1)]
    assert agent.stream_count == 0


def test_crossing_resets_leave_nothing_behind_and_are_not_answered() -> None:
    agent = with_stream(an_agent())
    agent.reset(1, CANCELLED)
    assert outline(heard(agent.outbox)) == [(RESET, 1)]
    assert agent.receive(number(RESET, 1, CANCELLED), 0.0) == []
    assert heard(agent.outbox) == []
    assert agent.stream_count == 0


def test_what_crosses_our_reset_is_dropped_until_the_peer_has_closed() -> None:
    agent = with_stream(an_agent())
    agent.reset(1, CANCELLED)
    crossing = data(1, b"x" * 1000) + number(CREDIT, 1, 5) + data(1, b"y") + fin(1)
    assert agent.receive(crossing, 0.0) == []
    assert agent.stream_count == 0
    assert outline(heard(agent.outbox)) == [(RESET, 1)]
    assert agent.failure is None


def test_a_fin_that_crosses_a_reset_is_answer_enough() -> None:
    agent = with_stream(an_agent())
    agent.finish(1)
    assert outline(heard(agent.outbox)) == [(FIN, 1)]
    assert agent.receive(number(RESET, 1, CANCELLED), 0.0) == [ev.StreamAborted(1, CANCELLED)]
    assert heard(agent.outbox) == []
    assert agent.stream_count == 0


def test_a_reset_is_answered_when_our_fin_had_not_left_yet() -> None:
    # Else the peer would wait for an end of our half for ever, and keep the slot.
    agent = with_stream(an_agent())
    agent.send(1, b"unsent")
    agent.finish(1)
    agent.receive(number(RESET, 1, CANCELLED), 0.0)
    assert outline(heard(agent.outbox)) == [(RESET, 1)]
    assert agent.stream_count == 0


def test_a_reset_code_of_a_newer_peer_still_ends_the_stream() -> None:
    agent = with_stream(an_agent())
    assert agent.receive(number(RESET, 1, 12345), 0.0) == [
        ev.StreamAborted(1, ResetCode.INTERNAL_ERROR)
    ]


def test_open_and_reset_in_one_message_leave_the_application_nothing_to_trip_over() -> None:
    agent = an_agent()
    events = agent.receive(opening(1) + number(RESET, 1, CANCELLED), 0.0)
    assert events == [ev.StreamOpened(1, "gateway"), ev.StreamAborted(1, CANCELLED)]
    agent.accept(1)  # what an application does when it hears of the first of them
    assert outline(heard(agent.outbox)) == [(RESET, 1)]
    assert agent.stream_count == 0


def test_a_stream_that_we_reset_is_not_accepted_afterwards() -> None:
    agent = an_agent()
    agent.receive(opening(1), 0.0)
    agent.reset(1, REFUSED)
    agent.accept(1)
    assert outline(heard(agent.outbox)) == [(RESET, 1)]


def test_an_accept_that_crosses_our_reset_is_dropped() -> None:
    gateway = a_gateway()
    gateway.open("t", 0.0)
    gateway.send(1, b"never sent")
    gateway.reset(1, CANCELLED)
    assert gateway.receive(number(ACCEPT, 1, 100) + data(1, b"x"), 0.0) == []
    assert outline(heard(gateway.outbox)) == [(OPEN, 1), (RESET, 1)]
    assert gateway.receive(number(RESET, 1, CANCELLED), 0.0) == []
    assert gateway.stream_count == 0


def test_an_end_without_an_accept_answers_our_reset() -> None:
    # The relay knows that we do not care for an ACCEPT any more, and passes only the end on.
    gateway = a_gateway()
    gateway.open("t", 0.0)
    gateway.reset(1, CANCELLED)
    assert gateway.receive(fin(1), 0.0) == []
    assert gateway.failure is None
    assert gateway.stream_count == 0


# -- credit


def test_a_credit_overrun_resets_that_stream_only() -> None:
    agent = with_stream(with_stream(an_agent(initial_credit=10), 1), 2)
    events = agent.receive(data(1, b"x" * 11) + data(2, b"y" * 10), 0.0)
    assert events[0] == ev.StreamAborted(1, FLOW)
    assert isinstance(events[1], ev.DataReceived)
    assert resets(heard(agent.outbox)) == [(1, FLOW)]
    assert agent.failure is None


def test_a_peer_that_overruns_again_and_again_loses_the_link() -> None:
    agent = an_agent(initial_credit=1)
    with_each = [opening(n) + data(n, b"xx") for n in range(1, 12)]
    for message in with_each[:10]:
        agent.receive(message, 0.0)
    assert agent.failure is None
    assert close_code_of(agent, with_each[10]) is CloseCode.ABUSE


def test_consumed_bytes_come_back_as_credit_and_the_peer_may_use_it_to_the_byte() -> None:
    agent = with_stream(an_agent(initial_credit=40))
    agent.receive(data(1, b"x" * 40), 0.0)
    agent.consume(1, 9, 1.0)
    assert heard(agent.outbox) == []
    agent.consume(1, 31, 1.0)
    assert heard(agent.outbox) == [(CREDIT, 1, pack(">I", 40))]
    assert [type(e) for e in agent.receive(data(1, b"x" * 40), 1.0)] == [ev.DataReceived]
    assert agent.receive(data(1, b"x"), 1.0) == [ev.StreamAborted(1, FLOW)]


@pytest.mark.parametrize("credit", [0, MAX_CREDIT])
def test_zero_and_overflowing_credit_reset_the_stream_and_are_borne_ten_times(
    credit: int,
) -> None:
    agent = an_agent()
    for n in range(1, 11):
        with_stream(agent, n)
        assert agent.receive(number(CREDIT, n, credit), 0.0) == [ev.StreamAborted(n, FLOW)]
        assert resets(heard(agent.outbox)) == [(n, FLOW)]
    with_stream(agent, 11)
    assert close_code_of(agent, number(CREDIT, 11, credit)) is CloseCode.ABUSE


def test_an_accept_without_credit_or_with_too_much_resets_the_stream() -> None:
    for credit in (0, MAX_CREDIT + 1):
        gateway = a_gateway()
        gateway.open("t", 0.0)
        heard(gateway.outbox)
        assert gateway.receive(number(ACCEPT, 1, credit), 0.0) == [ev.StreamAborted(1, FLOW)]


def test_no_credit_is_given_for_a_half_that_is_closed() -> None:
    agent = with_stream(an_agent(initial_credit=10))
    agent.receive(data(1, b"x" * 10) + fin(1), 0.0)
    agent.consume(1, 10, 0.0)
    assert heard(agent.outbox) == []


def test_the_window_grows_over_a_long_way() -> None:
    gateway = a_gateway()
    gateway.open("t", 0.0)
    gateway.receive(number(ACCEPT, 1, 1), 0.05)  # 50 ms from here to the agent and back
    now, granted, size = 0.05, 0, 0
    for _ in range(400):
        now += 0.001
        gateway.receive(data(1, bytes(MAX_PAYLOAD_BYTES)), now)
        size += MAX_PAYLOAD_BYTES
        gateway.consume(1, MAX_PAYLOAD_BYTES, now)
        for kind, _, payload in heard(gateway.outbox):
            if kind is CREDIT:
                granted += decode_u32(memoryview(payload))
        assert gateway.failure is None
    assert INITIAL_CREDIT + granted - size >= MAX_WINDOW // 2


# -- peers that break the rules


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (data(1, b"x") + fin(1) + data(1, b"y"), "DATA after FIN on stream 1"),
        (fin(1) + fin(1), "second FIN of stream 1"),
        (opening(1), "OPEN of stream 1 after 1"),
        (data(2, b"x"), "DATA frame on stream 2, never opened"),
        (number(RESET, MAX_STREAM_ID, 1), f"RESET frame on stream {MAX_STREAM_ID}, never opened"),
        (encode(CREDIT, 1, b"123"), "payload of 3 bytes where 4 were expected"),
        (encode(RESET, 1, b"12345"), "payload of 5 bytes where 4 were expected"),
        (encode(FIN, 1, b"x"), "FIN of 1 bytes"),
        (encode(OPEN, 2, b'{"credit": -1}'), "malformed Open payload"),
        (number(ACCEPT, 1, 1), "ACCEPT frame from relay"),
    ],
)
def test_a_broken_rule_ends_the_agents_link(message: bytes, reason: str) -> None:
    failure = failure_of(with_stream(an_agent()).receive(message, 0.0))
    assert (failure.code, failure.reason) == (CloseCode.PROTOCOL_ERROR, reason)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (number(ACCEPT, 1, 1) + number(ACCEPT, 1, 1), "second ACCEPT of stream 1"),
        (data(1, b"x"), "DATA frame on stream 1 before ACCEPT"),
        (fin(1), "FIN frame on stream 1 before ACCEPT"),
        (number(CREDIT, 1, 1), "CREDIT frame on stream 1 before ACCEPT"),
        (number(ACCEPT, 2, 1), "ACCEPT frame on stream 2, never opened"),
        (opening(2), "OPEN frame from relay"),
    ],
)
def test_a_broken_rule_ends_the_gateways_link(message: bytes, reason: str) -> None:
    gateway = a_gateway()
    gateway.open("t", 0.0)
    failure = failure_of(gateway.receive(message, 0.0))
    assert (failure.code, failure.reason) == (CloseCode.PROTOCOL_ERROR, reason)


def test_empty_data_is_borne_for_a_while() -> None:
    agent = with_stream(an_agent())
    assert agent.receive(data(1, b"") * 200, 0.0) == []
    assert close_code_of(agent, data(1, b"")) is CloseCode.ABUSE


def test_data_on_closed_streams_is_borne_for_a_while() -> None:
    agent = with_stream(an_agent())
    agent.receive(fin(1), 0.0)
    agent.finish(1)
    assert agent.receive(data(1, b"x") * 200, 0.0) == []
    assert close_code_of(agent, data(1, b"x")) is CloseCode.ABUSE


def test_credit_that_crosses_an_end_costs_little() -> None:
    # A peer that consumed our last bytes gives credit before it sees our FIN.
    agent = with_stream(an_agent())
    agent.receive(fin(1), 0.0)
    agent.finish(1)
    assert agent.receive(number(CREDIT, 1, 1) * 1000, 0.0) == []
    assert agent.failure is None
    agent.receive(number(CREDIT, 1, 1) * 2000, 0.0)
    assert agent.failure is not None


def test_frames_that_cross_an_end_cost_a_gateways_link_nothing() -> None:
    # An agent decides when they do, and the link carries the streams of all users.
    gateway = a_gateway()
    stream_id = gateway.open("t", 0.0)
    gateway.receive(number(ACCEPT, stream_id, 1000) + fin(stream_id), 0.0)
    gateway.finish(stream_id)
    crossing = number(CREDIT, stream_id, 1) + number(RESET, stream_id, CANCELLED)
    assert gateway.receive(crossing * 5000, 0.0) == []
    assert gateway.failure is None


@pytest.mark.parametrize(
    "frame", [data(1, b"x"), data(1, bytes(63)), number(CREDIT, 1, 1), number(CREDIT, 1, 4095)]
)
def test_a_flood_of_small_frames_ends_its_stream_and_not_the_link(
    frame: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "SMALL_FRAMES_BURST", 100.0)
    monkeypatch.setattr(endpoint_module, "SMALL_FRAMES_PER_S", 10.0)
    gateway = a_gateway()
    for stream_id in (1, 2):
        gateway.open("t", 0.0)
        gateway.receive(number(ACCEPT, stream_id, 1000), 0.0)
    gateway.receive(frame * 100, 0.0)
    gateway.receive(frame * 10, 1.0)  # as many as a second brings
    assert gateway.receive(data(2, bytes(64)), 1.0) != []
    heard(gateway.outbox)
    assert gateway.receive(frame, 1.0) == [ev.StreamAborted(1, ResetCode.THROTTLED)]
    assert resets(heard(gateway.outbox)) == [(1, ResetCode.THROTTLED)]
    # What still comes on it is dropped.
    assert gateway.receive(frame * 1000, 1.0) == []
    assert gateway.receive(data(2, bytes(64)), 1.0) == [ev.DataReceived(2, ANY)]
    assert gateway.failure is None


def test_tokens_of_the_usual_size_are_never_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "SMALL_FRAMES_BURST", 1.0)
    gateway = a_gateway(initial_credit=10**6)
    gateway.open("t", 0.0)
    gateway.receive(number(ACCEPT, 1, 1000), 0.0)
    for _ in range(10):
        assert len(gateway.receive(data(1, bytes(64)) * 1000, 0.0)) == 1000


def test_data_beyond_the_credit_of_a_stream_that_we_reset_is_charged() -> None:
    gateway = a_gateway()
    gateway.open("t", 0.0)
    gateway.receive(number(ACCEPT, 1, 1000), 0.0)
    gateway.reset(1, ResetCode.CANCELLED)
    window = gateway.hello.initial_credit
    for _ in range(window // 1024):
        assert gateway.receive(data(1, bytes(1024)), 0.0) == []
    for _ in range(10):
        gateway.receive(data(1, bytes(1024)), 0.0)
    assert gateway.failure is None
    assert close_code_of(gateway, data(1, bytes(1024))) is CloseCode.ABUSE


def test_the_sixty_fifth_stream_is_refused_until_one_was_closed_by_both() -> None:
    agent = an_agent()
    for n in range(1, 65):
        assert agent.receive(opening(n), 0.0) == [ev.StreamOpened(n, "gateway")]
        agent.accept(n)
    heard(agent.outbox)
    assert agent.receive(opening(65), 0.0) == []
    assert resets(heard(agent.outbox)) == [(65, ResetCode.LIMIT_EXCEEDED)]
    agent.receive(number(RESET, 65, CANCELLED), 0.0)
    agent.receive(fin(1), 0.0)
    agent.receive(opening(66), 0.0)
    assert resets(heard(agent.outbox)) == [(66, ResetCode.LIMIT_EXCEEDED)]
    agent.receive(number(RESET, 66, CANCELLED), 0.0)
    agent.finish(1)
    assert agent.receive(opening(67), 0.0) == [ev.StreamOpened(67, "gateway")]


def test_a_stream_that_we_have_closed_does_not_stand_in_the_way_of_the_next() -> None:
    # The relay frees a slot when both ends have closed theirs. Its OPEN of the next stream
    # overtakes the FIN of the last one, which waits behind that stream's bytes.
    agent = an_agent()
    for n in range(1, 65):
        with_stream(agent, n)
    agent.finish(1)
    assert agent.receive(opening(65), 0.0) == [ev.StreamOpened(65, "gateway")]
    agent.accept(65)
    assert agent.receive(fin(1) + fin(65), 0.0) == [ev.StreamFinished(1), ev.StreamFinished(65)]


def test_streams_that_only_we_have_closed_are_bounded_as_well() -> None:
    agent = an_agent(max_streams=4)
    for n in range(1, 9):
        with_stream(agent, n)
        agent.finish(n)
    assert agent.stream_count == 8
    assert agent.receive(opening(9), 0.0) == []


def test_a_peer_that_opens_and_resets_a_thousand_streams_loses_the_link() -> None:
    agent = an_agent()
    most = 0
    for n in range(1, 1001):
        agent.receive(opening(n), 0.0)
        agent.accept(n)
        agent.receive(number(RESET, n, CANCELLED), 0.0)
        most = max(most, agent.stream_count)
    assert agent.failure is not None
    assert agent.failure.code is CloseCode.ABUSE
    assert most <= 64


def test_an_agent_may_refuse_streams_by_the_thousand() -> None:
    agent = an_agent()
    for n in range(1, 2001):
        agent.receive(opening(n), 0.0)
        agent.reset(n, REFUSED)
        agent.receive(number(RESET, n, CANCELLED), 0.0)
    assert agent.failure is None


def test_streams_that_were_used_may_be_reset_by_the_thousand() -> None:
    agent = an_agent()
    for n in range(1, 2001):
        agent.receive(opening(n) + data(n, b"x") + number(RESET, n, CANCELLED), 0.0)
    assert agent.failure is None


def test_slots_stay_taken_until_both_sides_have_closed() -> None:
    agent = an_agent()
    for n in range(1, 65):
        agent.receive(opening(n), 0.0)
        agent.reset(n, REFUSED)
    assert agent.stream_count == 64
    for n in range(1, 65):
        agent.receive(number(RESET, n, CANCELLED), 0.0)
    assert agent.stream_count == 0


# -- our own side


def test_only_a_gateway_that_was_greeted_opens_streams() -> None:
    with pytest.raises(LocalProtocolError, match="not ready"):
        Endpoint(hello(Role.GATEWAY), now=0.0).open("t", 0.0)
    with pytest.raises(LocalProtocolError, match="not ready"):
        an_agent().open("t", 0.0)


def test_a_link_that_used_up_its_stream_ids_opens_no_more() -> None:
    gateway = a_gateway()
    gateway._last_stream_id = MAX_STREAM_ID - 1
    assert gateway.open("t", 0.0) == MAX_STREAM_ID
    with pytest.raises(LocalProtocolError, match="used up its stream ids"):
        gateway.open("t", 0.0)


def test_a_status_with_too_many_models_is_cut_before_it_leaves() -> None:
    agent = an_agent()
    agent.report_status(Status(models=tuple(f"model-{n:0200}" for n in range(1000))))
    relay = Endpoint(hello(Role.RELAY), now=0.0)
    relay.receive(say(hello(Role.AGENT)), 0.0)
    events = relay.receive(agent.outbox.take(), 0.0)
    assert [type(event) for event in events] == [ev.StatusReported]


# -- two ends against each other, in any order


operation = st.one_of(
    st.tuples(st.just("open"), st.just(0), st.just(0)),
    st.tuples(st.sampled_from(["write g", "write a"]), st.integers(1, 6), st.integers(1, 2000)),
    st.tuples(st.sampled_from(["read g", "read a"]), st.integers(1, 6), st.integers(1, 4000)),
    st.tuples(
        st.sampled_from(["finish g", "finish a", "reset g", "reset a"]),
        st.integers(1, 6),
        st.just(0),
    ),
    st.tuples(st.sampled_from(["carry g", "carry a"]), st.just(0), st.integers(1100, 3000)),
)


# Not `st.lists(operation)`: those are five long on average.
operations_of_any_length = st.integers(0, 80).flatmap(
    lambda length: st.lists(operation, min_size=length, max_size=length)
)


class Pair:
    """A gateway's and an agent's endpoint, joined without a relay, and a model of both."""

    def __init__(self) -> None:
        self.ends = {"g": a_gateway(initial_credit=1500), "a": an_agent(initial_credit=1000)}
        self.now = 0.0
        self.opened = 0
        self.aborted: set[int] = set()
        self.finished: dict[str, set[int]] = defaultdict(set)
        self.written: dict[tuple[str, int], bytes] = defaultdict(bytes)
        self.arrived: dict[tuple[str, int], bytes] = defaultdict(bytes)
        self.unread: dict[tuple[str, int], int] = defaultdict(int)
        self.ended: dict[str, list[int]] = defaultdict(list)

    def apply(self, what: str, stream_id: int, amount: int) -> None:
        self.now += 0.001
        verb, _, side = what.partition(" ")
        end = self.ends.get(side)
        if end is None:
            self.opened = self.ends["g"].open("t", self.now)
        elif verb == "write" and end.holds(stream_id):
            self._write(side, stream_id, amount)
        elif verb == "read":
            taken = min(amount, self.unread[side, stream_id])
            self.unread[side, stream_id] -= taken
            end.consume(stream_id, taken, self.now)
        elif verb == "finish" and end.holds(stream_id):
            end.finish(stream_id)
            self.finished[side].add(stream_id)
        elif verb == "reset" and end.holds(stream_id):
            end.reset(stream_id, CANCELLED)
            self.aborted.add(stream_id)
        elif verb == "carry":
            self.carry(side, amount)

    def _write(self, side: str, stream_id: int, amount: int) -> None:
        if stream_id not in self.finished[side] and stream_id not in self.aborted:
            start = len(self.written[side, stream_id])
            piece = bytes((start + n) % 251 for n in range(amount))
            self.written[side, stream_id] += piece
            self.ends[side].send(stream_id, piece)

    def carry(self, side: str, limit: int = 128 * 1024) -> None:
        """Carry one message from a side to the other."""
        message = self.ends[side].outbox.take(limit)
        if not message:
            return
        there = "a" if side == "g" else "g"
        for event in self.ends[there].receive(message, self.now):
            match event:
                case ev.StreamOpened(stream_id):
                    self.ends[there].accept(stream_id)
                case ev.DataReceived(stream_id, payload):
                    self.arrived[side, stream_id] += bytes(payload)
                    self.unread[there, stream_id] += len(payload)
                case ev.StreamFinished(stream_id) | ev.StreamAborted(stream_id):
                    self.ended[there].append(stream_id)
                    if isinstance(event, ev.StreamAborted):
                        self.aborted.add(stream_id)
                case _:
                    assert isinstance(event, ev.StreamAccepted), event

    def close_everything(self) -> None:
        for _ in range(400):
            for side, end in self.ends.items():
                self.carry(side)
                for stream_id in range(1, self.opened + 1):
                    end.finish(stream_id)
                    end.consume(stream_id, self.unread.pop((side, stream_id), 0), self.now)
            if not any(end.stream_count or end.outbox for end in self.ends.values()):
                return


@settings(max_examples=150, deadline=None)
@given(operations_of_any_length)
def test_every_byte_arrives_once_in_order_and_nothing_is_left_behind(
    operations: list[tuple[str, int, int]],
) -> None:
    pair = Pair()
    for what in operations:
        pair.apply(*what)
    pair.close_everything()
    for side, end in pair.ends.items():
        assert end.failure is None
        assert end.stream_count == 0
        assert not end.outbox
        for stream_id in range(1, pair.opened + 1):
            arrived, written = pair.arrived[side, stream_id], pair.written[side, stream_id]
            assert written.startswith(arrived)
            if stream_id not in pair.aborted:
                assert arrived == written
                assert pair.ended[side].count(stream_id) == 1
        # Two well-behaved ends never charge each other for anything but crossing frames.
        assert end._budget._tokens > 150


@given(st.lists(st.integers(0, 300), min_size=1, max_size=20, unique=True))
def test_messages_may_be_cut_between_any_two_frames(cuts: list[int]) -> None:
    agent = an_agent()
    frames = [opening(1), data(1, b"a"), data(1, b"b"), opening(2), fin(1), data(2, b"c"), fin(2)]
    bounds = sorted({0, *(cut % len(frames) for cut in cuts), len(frames)})
    seen: list[ev.Event] = []
    for start, end in pairwise(bounds):
        for event in agent.receive(b"".join(frames[start:end]), 0.0):
            seen.append(event)
            if isinstance(event, ev.StreamOpened):
                agent.accept(event.stream_id)
    assert [type(event).__name__ for event in seen] == [
        "StreamOpened",
        "DataReceived",
        "DataReceived",
        "StreamOpened",
        "StreamFinished",
        "DataReceived",
        "StreamFinished",
    ]


def test_an_open_of_a_newer_peer_is_understood() -> None:
    payload = encode_control(Open(credit=1))[:-1] + b',"priority":3}'
    assert an_agent().receive(encode(OPEN, 1, payload), 0.0) == [ev.StreamOpened(1, "")]
