"""The blind switch, between real endpoints joined in memory."""

from collections import defaultdict
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byoai_relay import switch as switch_module
from byoai_relay.port import RESET_FRAME_WORK, SwitchLimits
from byoai_shared.protocol.credit import INITIAL_CREDIT, MAX_WINDOW
from byoai_shared.protocol.errors import CloseCode, ResetCode
from byoai_shared.protocol.frames import FrameType, decode, encode
from support.switchboard import End, Switchboard
from support.transcript import data, fin, heard, number, opening

ACCEPT, CREDIT, RESET = FrameType.ACCEPT, FrameType.CREDIT, FrameType.RESET
MIB = 1024 * 1024


def open_stream(board: Switchboard, gateway: End, tunnel_id: str = "t") -> int:
    stream_id = gateway.endpoint.open(tunnel_id, board.now)
    board.carry_all()
    return stream_id


def assert_nothing_is_left(board: Switchboard) -> None:
    assert board.switch.buffered_bytes == 0
    assert board.switch._streams_of == {}
    assert board.switch.dirty == []
    for end in board.ends:
        assert end.port.legs == {}
        assert end.port.held_legs == {}
        assert not end.port.outbox
        if end.is_up:
            assert end.endpoint.stream_count == 0
            assert end.endpoint.failure is None


# -- joining


def test_a_stream_is_joined_used_both_ways_and_forgotten() -> None:
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    stream_id = open_stream(board, gateway)
    assert gateway.accepted == [stream_id]
    assert board.switch.stream_count("t") == 1
    gateway.endpoint.send(stream_id, b"question")
    gateway.endpoint.finish(stream_id)
    agent.endpoint.send(1, b"answer")
    agent.endpoint.finish(1)
    board.carry_all()
    assert agent.received == {1: b"question"}
    assert gateway.received == {stream_id: b"answer"}
    assert (agent.finished, gateway.finished) == ([1], [stream_id])
    assert_nothing_is_left(board)


def test_a_stream_goes_to_the_agent_that_it_names_or_to_none() -> None:
    board = Switchboard()
    gateway, first, second = board.gateway(), board.agent(name="a1"), board.agent(name="a2")
    for _ in range(3):
        gateway.endpoint.open("t", board.now, "a2")
    board.carry_all()
    assert (first.endpoint.stream_count, second.endpoint.stream_count) == (0, 3)
    board.cut(second)
    stream_id = gateway.endpoint.open("t", board.now, "a2")
    board.carry_all()
    assert gateway.aborted[stream_id] is ResetCode.TUNNEL_OFFLINE
    assert first.endpoint.stream_count == 0


def test_the_agent_is_told_who_dials_and_how_far_away_it_is() -> None:
    board = Switchboard()
    gateway, agent = board.gateway("gw-7"), board.agent()
    gateway.port.round_trip.add(90.0, 0.0)
    gateway.endpoint.open("t", 0.0)
    board.carry_in(gateway)
    message = agent.port.outbox.take()
    ((kind, _, payload),) = decode(message)
    assert kind == FrameType.OPEN
    assert b'"dialer":"gw-7"' in bytes(payload)
    agent.hear(message, 0.0)
    assert agent.endpoint.failure is None


def test_a_tunnel_that_is_not_here_is_refused_and_leaves_nothing() -> None:
    board = Switchboard()
    gateway = board.gateway()
    stream_id = open_stream(board, gateway, "elsewhere")
    assert gateway.aborted == {stream_id: ResetCode.TUNNEL_OFFLINE}
    assert_nothing_is_left(board)


def test_streams_go_to_the_least_busy_agent() -> None:
    board = Switchboard()
    gateway, one, two = board.gateway(), board.agent(name="a1"), board.agent(name="a2")
    for _ in range(6):
        open_stream(board, gateway)
    assert (len(one.opened), len(two.opened)) == (3, 3)


def test_a_refusal_reaches_the_dialer_with_its_code() -> None:
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    agent.takes_streams = False
    stream_id = open_stream(board, gateway)
    agent.endpoint.reset(1, ResetCode.NOT_PROCESSED)
    board.carry_all()
    assert gateway.aborted == {stream_id: ResetCode.NOT_PROCESSED}
    assert_nothing_is_left(board)


def test_open_and_reset_in_one_turn_cost_nobody_the_link() -> None:
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    stream_id = gateway.endpoint.open("t", 0.0)
    gateway.endpoint.reset(stream_id, ResetCode.CANCELLED)
    board.carry_all()
    assert agent.aborted == {1: ResetCode.CANCELLED}
    assert_nothing_is_left(board)


@pytest.mark.parametrize("resetting", ["gateway", "agent"])
def test_a_reset_is_answered_even_if_the_others_fin_still_waits(resetting: str) -> None:
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    stream_id = open_stream(board, gateway)
    ends = {"gateway": (gateway, stream_id), "agent": (agent, 1)}
    end, own_id = ends.pop(resetting)
    ((other, other_id),) = ends.values()
    other.endpoint.send(other_id, b"x" * 1000)
    other.endpoint.finish(other_id)
    board.carry_in(other)  # now it waits at the relay
    end.endpoint.reset(own_id, ResetCode.CANCELLED)
    board.carry_all()
    assert_nothing_is_left(board)


# -- what passes for a rule


@pytest.mark.parametrize(
    "message",
    [
        number(ACCEPT, 1, 10) + number(ACCEPT, 1, 10),
        number(ACCEPT, 1, 10) + fin(1) + data(1, b"x"),
        number(ACCEPT, 1, 10) + fin(1) + fin(1),
        number(ACCEPT, 1, 10) + number(RESET, 1, 1) + data(1, b"x"),
        number(ACCEPT, 1, 10) + number(RESET, 1, 1) + fin(1),
        number(ACCEPT, 1, 10) + number(RESET, 1, 1) + number(RESET, 1, 1),
        number(ACCEPT, 1, 10) + encode(FrameType.FIN, 1, b"x"),
        encode(ACCEPT, 1, b"123"),
        fin(1),
        number(CREDIT, 1, 10),
        number(ACCEPT, 2, 10),
        opening(1),
    ],
    ids=range(12),
)
def test_an_agent_that_breaks_a_rule_loses_its_link_and_no_gateway_does(message: bytes) -> None:
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    agent.takes_streams = False
    stream_id = gateway.endpoint.open("t", 0.0)
    board.carry_all()
    board.say(agent, message)
    assert agent.port.failure is not None
    assert agent.port.failure.code is CloseCode.PROTOCOL_ERROR
    board.carry_all()
    assert gateway.is_up
    assert stream_id in gateway.aborted
    assert_nothing_is_left(board)


@pytest.mark.parametrize(
    "message",
    [opening(1, "t"), data(9, b"x"), number(ACCEPT, 1, 1), encode(CREDIT, 1, b"")],
    ids=["OPEN twice", "DATA of nothing", "ACCEPT", "CREDIT without a number"],
)
def test_a_gateway_that_breaks_a_rule_loses_its_link_and_no_agent_does(message: bytes) -> None:
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    open_stream(board, gateway)
    board.say(gateway, message)
    assert gateway.port.failure is not None
    board.carry_all()
    assert agent.aborted == {1: ResetCode.LINK_LOST}
    assert_nothing_is_left(board)


def test_data_before_accept_is_an_overrun() -> None:
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    agent.takes_streams = False
    stream_id = open_stream(board, gateway)
    board.say(agent, data(1, b"hasty"))
    board.carry_all()
    assert gateway.aborted == {stream_id: ResetCode.FLOW_CONTROL}
    assert gateway.received == {}


def test_credit_before_accept_does_not_make_the_gateway_overrun() -> None:
    # Counted twice by the gateway and once by the relay, it would be the gateway that is blamed.
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    agent.takes_streams = False
    open_stream(board, gateway)
    board.say(agent, number(CREDIT, 1, 1000))
    assert agent.port.failure is not None
    assert gateway.is_up


@pytest.mark.parametrize("side", ["gateway", "agent"])
def test_an_overrun_resets_that_stream_on_both_sides_and_no_other(side: str) -> None:
    board = Switchboard()
    gateway, agent = board.gateway(initial_credit=100), board.agent(initial_credit=100)
    first, second = open_stream(board, gateway), open_stream(board, gateway)
    end, own_id = (gateway, first) if side == "gateway" else (agent, 1)
    board.say(end, data(own_id, b"x" * 101))
    board.carry_all()
    assert gateway.aborted == {first: ResetCode.FLOW_CONTROL}
    assert agent.aborted == {1: ResetCode.FLOW_CONTROL}
    gateway.endpoint.send(second, b"fine")
    board.carry_all()
    assert agent.received[2] == b"fine"
    assert board.switch.counters.resets == {ResetCode.FLOW_CONTROL: 1}


@pytest.mark.parametrize("credit", [0, MAX_WINDOW, 2**32 - 1])
def test_zero_and_overflowing_credit_reset_the_stream(credit: int) -> None:
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    stream_id = open_stream(board, gateway)
    board.say(agent, number(CREDIT, 1, credit))
    board.carry_all()
    assert gateway.aborted == {stream_id: ResetCode.FLOW_CONTROL}
    assert gateway.is_up
    assert agent.is_up


def test_more_credit_than_the_largest_window_is_not_taken_at_the_start_either() -> None:
    board = Switchboard()
    greedy = board.gateway(initial_credit=MAX_WINDOW + 1)
    board.agent("t1", initial_credit=MAX_WINDOW + 1)
    board.agent("t2")
    other = board.gateway("g2")
    refused = open_stream(board, greedy, "t2")
    assert greedy.aborted == {refused: ResetCode.FLOW_CONTROL}
    refused = open_stream(board, other, "t1")
    assert other.aborted == {refused: ResetCode.FLOW_CONTROL}
    assert_nothing_is_left(board)


def test_the_sixty_fifth_stream_of_a_tunnel_is_refused_until_a_slot_is_free() -> None:
    board = Switchboard()
    one, two, agent = board.gateway("g1"), board.gateway("g2"), board.agent()
    for gateway in (one, two):
        for _ in range(32):
            open_stream(board, gateway)
    refused = open_stream(board, one)
    assert one.aborted == {refused: ResetCode.LIMIT_EXCEEDED}
    two.endpoint.finish(1)
    board.carry_all()
    assert open_stream(board, one) in one.aborted  # closed by one side only
    agent.endpoint.finish(33)
    board.carry_all()
    assert open_stream(board, one) in one.accepted
    assert board.switch.stream_count("t") == 64


def test_an_agents_own_limit_counts_as_well() -> None:
    board = Switchboard()
    gateway = board.gateway()
    board.agent(max_streams=2)
    for _ in range(2):
        assert open_stream(board, gateway) in gateway.accepted
    assert gateway.aborted == {open_stream(board, gateway): ResetCode.LIMIT_EXCEEDED}


def test_opens_are_bucketed_per_agent() -> None:
    limits = SwitchLimits(opens_burst=3, opens_per_s=1, streams_per_tunnel=1000)
    board = Switchboard(limits)
    gateway = board.gateway()
    board.agent("t1", max_streams=1000)
    board.agent("t2", max_streams=1000)
    for _ in range(3):
        assert open_stream(board, gateway, "t1") in gateway.accepted
    refused = open_stream(board, gateway, "t1")
    assert gateway.aborted == {refused: ResetCode.NOT_PROCESSED}
    assert open_stream(board, gateway, "t2") in gateway.accepted
    board.now += 1.0
    assert open_stream(board, gateway, "t1") in gateway.accepted


def hang_up(board: Switchboard, gateway: End, tunnel_id: str = "t") -> int:
    """Open a stream and reset it before an answer."""
    stream_id = open_stream(board, gateway, tunnel_id)
    gateway.endpoint.reset(stream_id, ResetCode.CANCELLED)
    board.carry_all()
    return stream_id


def test_a_thousand_early_resets_are_charged_to_their_tunnel_and_to_no_link() -> None:
    board = Switchboard(SwitchLimits(opens_burst=10_000))
    gateway, agent = board.gateway(), board.agent()
    neighbour = board.agent("t2", "a2")
    kept = open_stream(board, gateway, "t2")
    for _ in range(1000):
        hang_up(board, gateway)
        board.now += 0.006
        assert board.switch.stream_count("t") == 0
    assert board.switch.counters.early_resets < 250
    assert gateway.aborted[open_stream(board, gateway)] is ResetCode.THROTTLED
    # What all users share, and the others' streams, go on as if nothing had been.
    assert gateway.port.failure is None
    assert gateway.port._budget.spend(199, board.now)
    assert agent.endpoint.failure is None
    gateway.endpoint.send(kept, b"still served")
    board.carry_all()
    assert neighbour.received[1] == b"still served"
    assert open_stream(board, gateway, "t2") in gateway.accepted


def test_early_resets_from_all_gateways_count_together_and_spare_the_agents_link() -> None:
    board = Switchboard(SwitchLimits(opens_burst=10_000))
    gateways = [board.gateway(f"g{n}") for n in range(8)]
    agent = board.agent()
    for _ in range(300):
        for gateway in gateways:
            hang_up(board, gateway)
    assert board.switch.counters.early_resets == 201
    assert agent.endpoint.failure is None
    assert all(gateway.port.failure is None for gateway in gateways)


def test_a_tunnel_is_served_again_after_a_while_and_not_sooner_by_a_new_link() -> None:
    board = Switchboard(SwitchLimits(opens_burst=10_000))
    gateway, agent = board.gateway(), board.agent()
    for _ in range(201):
        hang_up(board, gateway)
    board.cut(agent)
    board.agent()
    board.now += 9.9
    assert gateway.aborted[open_stream(board, gateway)] is ResetCode.THROTTLED
    board.now += 0.1
    stream_id = open_stream(board, gateway)
    assert stream_id in gateway.accepted
    # It has recovered by ten seconds' worth.
    for _ in range(50):
        hang_up(board, gateway)
    assert open_stream(board, gateway) in gateway.accepted
    hang_up(board, gateway)
    assert gateway.aborted[open_stream(board, gateway)] is ResetCode.THROTTLED


def test_a_stream_reset_after_its_answer_began_is_not_charged() -> None:
    board = Switchboard(SwitchLimits(opens_burst=10_000))
    gateway, agent = board.gateway(), board.agent()
    for number_of_stream in range(1, 501):
        stream_id = open_stream(board, gateway)
        agent.endpoint.send(number_of_stream, b"x" * 100)
        board.carry_all()
        gateway.endpoint.reset(stream_id, ResetCode.CANCELLED)
        board.carry_all()
    assert board.switch.counters.early_resets == 0
    assert board.switch.accounts.known("t") is None


def test_a_tenant_that_ends_streams_as_the_gateway_does_costs_the_shared_link_nothing() -> None:
    # The frames that cross an end are the gateway's, but the agent chooses the moment.
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    for number_of_stream in range(1, 3001):
        board.now += 0.01
        stream_id = open_stream(board, gateway)
        gateway.endpoint.finish(stream_id)
        board.carry_in(gateway)
        agent.endpoint.finish(number_of_stream)
        board.carry_in(agent)
        gateway.endpoint.reset(stream_id, ResetCode.CANCELLED)
        board.carry_all()
    assert gateway.port.failure is None
    assert gateway.port._budget.spend(199, board.now)


def test_an_agent_that_refuses_everything_does_not_cost_the_gateway_its_link() -> None:
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    agent.takes_streams = False
    for number_of_stream in range(1, 1001):
        board.now += 0.01
        stream_id = open_stream(board, gateway)
        agent.endpoint.reset(number_of_stream, ResetCode.REFUSED)
        board.carry_all()
        assert gateway.aborted[stream_id] is ResetCode.REFUSED
    assert gateway.port.failure is None
    assert board.switch.counters.resets == {ResetCode.REFUSED: 1000}
    assert_nothing_is_left(board)


def test_a_thousand_resets_hold_their_slots_until_the_agent_has_answered() -> None:
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    for _ in range(100):
        stream_id = gateway.endpoint.open("t", board.now)
        gateway.endpoint.reset(stream_id, ResetCode.CANCELLED)
    board.carry_in(gateway)
    assert board.switch.stream_count("t") == 64
    assert gateway.is_up
    board.carry_all()
    assert len(agent.opened) == 64
    assert_nothing_is_left(board)


def test_a_gateway_that_answers_no_refusal_does_not_fill_the_relay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(switch_module, "MAX_STREAMS_PER_LINK", 50)
    board = Switchboard()
    gateway = board.gateway()
    for stream_id in range(1, 51):
        board.say(gateway, opening(stream_id, "elsewhere"))
    assert gateway.is_up
    board.say(gateway, opening(51, "elsewhere"))
    assert gateway.port.failure is not None
    assert gateway.port.failure.code is CloseCode.ABUSE
    assert_nothing_is_left(board)


# -- small frames


def of_credit(board: Switchboard, gateway: End) -> int:
    """Open a stream whose agent may grant a megabyte in small pieces."""
    stream_id = open_stream(board, gateway)
    gateway.endpoint.send(stream_id, bytes(INITIAL_CREDIT))
    board.carry_all()
    return stream_id


FLOODS = {
    "CREDIT of 1": number(CREDIT, 1, 1),
    "DATA of 1": data(1, b"x"),
    "DATA of 63": data(1, bytes(63)),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_small_frames_of_an_agent_are_charged_to_its_tunnel(flood: str) -> None:
    board = Switchboard(SwitchLimits(frames_per_s=500))
    gateway, agent = board.gateway(), board.agent()
    of_credit(board, gateway)
    for _ in range(40):
        board.say(agent, FLOODS[flood] * 100)
    assert agent.port.charge_work(board.now) > 0.1
    assert agent.port.failure is None
    board.carry_all()
    assert gateway.endpoint.failure is None
    assert gateway.endpoint._budget.spend(199, board.now)


def test_frames_on_a_stream_that_was_reset_are_charged_and_end_with_its_credit() -> None:
    board = Switchboard()
    gateway, agent = board.gateway(initial_credit=100_000), board.agent()
    stream_id = open_stream(board, gateway)
    gateway.endpoint.reset(stream_id, ResetCode.CANCELLED)
    board.carry_in(gateway)
    agent.port.work = 0
    board.say(agent, data(1, bytes(100)) * 1000)
    assert agent.port.work == 1000 * (1 + RESET_FRAME_WORK)
    assert agent.is_up
    for _ in range(20):
        board.say(agent, data(1, bytes(100)))
    assert agent.port.failure is not None
    assert agent.port.failure.code is CloseCode.ABUSE
    assert gateway.is_up


def test_credit_on_a_stream_that_was_reset_is_charged() -> None:
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    stream_id = open_stream(board, gateway)
    gateway.endpoint.reset(stream_id, ResetCode.CANCELLED)
    board.carry_in(gateway)
    agent.port.work = 0
    board.say(agent, number(CREDIT, 1, 100_000) * 1000)
    assert agent.port.work == 1000 * (1 + RESET_FRAME_WORK)


@pytest.mark.parametrize("frame", [data(1, b"x"), number(CREDIT, 1, 1)], ids=["DATA", "CREDIT"])
def test_small_frames_of_a_gateway_cost_their_stream_and_not_the_link(frame: bytes) -> None:
    board = Switchboard()
    gateway, agent, neighbour = board.gateway(), board.agent(), board.agent("t2", "a2")
    stream_id = open_stream(board, gateway)
    agent.endpoint.send(1, bytes(INITIAL_CREDIT))
    board.carry_all()
    kept = open_stream(board, gateway, "t2")
    while stream_id not in gateway.aborted:
        board.say(gateway, frame * 100)
        board.carry_all()
    assert gateway.aborted == {stream_id: ResetCode.THROTTLED}
    assert board.switch.counters.throttled == 1
    assert gateway.port._budget.spend(199, board.now)
    gateway.endpoint.send(kept, b"still served")
    board.carry_all()
    assert neighbour.received[1] == b"still served"


def test_256_streams_of_500_tokens_a_second_use_half_of_their_tunnels_share() -> None:
    limits = SwitchLimits(streams_per_tunnel=256, opens_burst=256)
    board = Switchboard(limits)
    gateway, agent = board.gateway(), board.agent(max_streams=256)
    for _ in range(256):
        open_stream(board, gateway)
    agent.port.work = 0
    event = bytes(150)  # a chunk of a streamed answer as the wire has it, or less
    for _ in range(5):
        board.now += 0.1
        for stream_id in range(1, 257):
            for _ in range(50):
                agent.endpoint.send(stream_id, event)
        board.carry_all()
    assert sum(map(len, gateway.received.values())) == 5 * 256 * 50 * 150
    # Events, and nothing that costs extra.
    assert agent.port.work == 5 * 256 * 50 == 0.5 * 0.5 * limits.for_accounts().work_per_s
    assert agent.port.charge_work(board.now) == 0.0


def test_an_upload_of_20_mb_costs_a_few_frames_of_credit_and_none_is_small() -> None:
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    stream_id = open_stream(board, gateway)
    agent.port.work = 0
    gateway.endpoint.send(stream_id, bytes(20 * MIB))
    board.carry_all()
    assert len(agent.received[1]) == 20 * MIB
    assert agent.port.work <= 20 * MIB / (INITIAL_CREDIT / 4)


def test_credit_that_waits_for_a_gateway_is_one_frame_for_a_stream() -> None:
    # Else small grants would fill the outbox of the link that all users share.
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    stream_id = of_credit(board, gateway)
    for _ in range(100):
        board.say(agent, number(CREDIT, 1, 1) * 1000)
    assert gateway.port.outbox.queued_bytes == 12
    assert heard(gateway.port.outbox) == [(CREDIT, stream_id, pack(">I", 100_000))]


# -- back-pressure and memory


def stall(
    board: Switchboard, gateway: End, agent: End, sizes: list[int], *, chunk: int = MIB
) -> list[int]:
    """Send `sizes` bytes each to streams of an agent that takes nothing off its link."""
    streams = [open_stream(board, gateway) for _ in sizes]
    for stream_id, size in zip(streams, sizes, strict=True):
        for at in range(0, size, chunk):
            gateway.endpoint.send(stream_id, bytes(min(chunk, size - at)))
    board.carry_all(but=agent)
    return streams


def test_a_stalled_link_holds_no_more_than_the_credit_that_was_given() -> None:
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    stall(board, gateway, agent, [50 * MIB] * 8)
    frames = 8 * INITIAL_CREDIT // (32 * 1024) * 8  # their headers
    assert 0 < board.switch.buffered_bytes <= 8 * INITIAL_CREDIT + frames + 1000


def test_credit_is_held_above_the_high_mark_and_flows_below_the_low_one() -> None:
    limits = SwitchLimits(link_high_bytes=100_000, link_low_bytes=20_000)
    board = Switchboard(limits)
    gateway, agent = board.gateway(), board.agent()
    gateway.reads = False
    one, two = open_stream(board, gateway), open_stream(board, gateway)
    agent.endpoint.send(1, bytes(INITIAL_CREDIT))
    board.carry_all()
    # The second stream jams the gateway's way out, while it uses up the first one's bytes.
    agent.endpoint.send(2, bytes(INITIAL_CREDIT))
    board.carry_all(but=gateway)
    assert gateway.port.is_congested
    gateway.read(one, INITIAL_CREDIT, board.now)
    board.carry_in(gateway)
    assert board.switch.counters.credit_held == 1
    assert not agent.port.outbox
    # Not at the first byte below the high mark, but below the low one.
    while gateway.port.outbox.queued_bytes > 20_000:
        assert not agent.port.outbox
        board.carry_out(gateway, 40_000)
    ((kind, stream_id, payload),) = decode(agent.port.outbox.take())
    assert (kind, stream_id, bytes(payload)) == (CREDIT, 1, pack(">I", INITIAL_CREDIT))
    assert two in gateway.received


def test_credit_held_by_a_jam_that_is_dropped_flows_without_another_byte() -> None:
    limits = SwitchLimits(link_high_bytes=100_000, link_low_bytes=20_000)
    board = Switchboard(limits)
    gateway = board.gateway()
    agent, jamming = board.agent("t1", "a1"), board.agent("t2", "a2")
    one, two = open_stream(board, gateway, "t1"), open_stream(board, gateway, "t2")
    gateway.reads = False
    agent.endpoint.send(1, bytes(INITIAL_CREDIT))
    board.carry_all()
    jamming.endpoint.send(1, bytes(INITIAL_CREDIT))
    board.carry_all(but=gateway)
    gateway.read(one, INITIAL_CREDIT, board.now)
    board.carry_all(but=gateway)
    assert board.switch.counters.credit_held == 1
    gateway.endpoint.reset(two, ResetCode.CANCELLED)
    board.carry_in(gateway)
    assert not gateway.port.is_congested
    assert agent.port.outbox  # the credit is on its way


def test_one_stalled_reader_stalls_nobody_else() -> None:
    board = Switchboard(SwitchLimits(memory_bytes=8 * MIB))
    gateway = board.gateway()
    stalled, lively = board.agent("t1", "a1"), board.agent("t2", "a2")
    upload = bytes(50 * MIB)
    streams = [open_stream(board, gateway, "t1") for _ in range(30)]
    talk = open_stream(board, gateway, "t2")
    for stream_id in streams:
        gateway.endpoint.send(stream_id, upload)
    # Past 80 % of the process's budget, and beyond.
    board.carry_all(but=stalled)
    assert board.switch.buffered_bytes > 0.8 * 8 * MIB
    for _ in range(100):
        gateway.endpoint.send(talk, bytes(100_000))
        board.carry_all(but=stalled)
    assert len(lively.received[1]) == 100 * 100_000
    assert lively.port.held_legs == {}


def test_a_token_overtakes_an_upload_of_50_mb_through_the_switch() -> None:
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    upload, chat = open_stream(board, gateway), open_stream(board, gateway)
    gateway.endpoint.send(upload, bytes(50 * MIB))
    for _ in range(4):
        board.carry_in(gateway)
    gateway.endpoint.send(chat, b"token")
    board.carry_in(gateway)
    assert agent.port.outbox.queued_bytes > 128 * 1024
    board.carry_out(agent)
    assert agent.received[2] == b"token"


def test_a_stream_refused_at_80_percent_of_the_budget_ends_the_largest_and_makes_room() -> None:
    board = Switchboard(SwitchLimits(memory_bytes=10 * 130_000))
    gateway, agent, other = board.gateway(), board.agent(), board.agent("t2", "a2")
    stall(board, gateway, agent, [131_000] + [130_000] * 7)
    assert 0.8 < board.switch.buffered_bytes / (10 * 130_000) < 1
    refused = gateway.endpoint.open("t2", board.now)
    board.carry_all(but=agent)
    assert gateway.aborted == {refused: ResetCode.NOT_PROCESSED, 1: ResetCode.OVERLOADED}
    assert other.opened == []
    taken = gateway.endpoint.open("t2", board.now)
    board.carry_all(but=agent)
    assert taken in gateway.accepted


def test_above_the_budget_the_largest_stream_ends_and_the_rest_goes_on() -> None:
    board = Switchboard(SwitchLimits(memory_bytes=500_000))
    gateway, agent = board.gateway(), board.agent()
    small, large, medium = stall(board, gateway, agent, [100_000, 250_000, 200_000])
    assert gateway.aborted == {large: ResetCode.OVERLOADED}
    assert board.switch.counters.shed == 1
    assert board.switch.buffered_bytes <= 500_000
    board.carry_all()
    assert agent.aborted == {2: ResetCode.OVERLOADED}
    assert (len(agent.received[1]), len(agent.received[3])) == (100_000, 200_000)
    assert {small, medium} <= set(gateway.accepted)


def test_streams_that_both_ends_have_closed_are_shed_as_well() -> None:
    # Else a link that takes nothing could fill the relay with streams it has closed.
    board = Switchboard(SwitchLimits(memory_bytes=600_000))
    gateway, agent = board.gateway(), board.agent()
    for _ in range(20):
        stream_id = open_stream_past(board, gateway, agent)
        gateway.endpoint.send(stream_id, bytes(200_000))
        gateway.endpoint.finish(stream_id)
        board.carry_all(but=agent)
        assert board.switch.buffered_bytes <= 600_000
    assert board.switch.counters.shed > 0
    assert agent.port.legs == {}
    board.carry_all()
    assert agent.endpoint.failure is None
    assert_nothing_is_left(board)


def open_stream_past(board: Switchboard, gateway: End, agent: End) -> int:
    """Open a stream that the agent takes and finishes at once, without reading its link."""
    before = agent.port._last_stream_id
    stream_id = gateway.endpoint.open("t", board.now)
    board.carry_all(but=agent)
    far = before + 1
    if agent.port._last_stream_id == far:
        # It takes urgent frames only: enough to see the OPEN.
        waiting = [frame for queue in agent.port.outbox._urgent for frame in queue]
        message = b"".join(frame for frame in waiting if isinstance(frame, bytes))
        for queue in agent.port.outbox._urgent:
            queue.clear()
        agent.port.outbox._urgent_count = 0
        agent.port.outbox.queued_bytes -= len(message)
        board.switch.flushed(agent.port)
        agent.hear(message, board.now)
        agent.endpoint.finish(far)
        board.carry_all(but=agent)
    return stream_id


# -- links that go


@pytest.mark.parametrize("lost", ["gateway", "agent"])
def test_a_lost_link_resets_the_other_sides_at_once_and_no_byte_of_it_stays(lost: str) -> None:
    board = Switchboard()
    gateway, agent, other = board.gateway(), board.agent(), board.agent("t2", "a2")
    streams = [open_stream(board, gateway) for _ in range(3)]
    kept = open_stream(board, gateway, "t2")
    for stream_id in streams:
        gateway.endpoint.send(stream_id, bytes(10_000))
    agent.endpoint.send(2, bytes(10_000))
    board.carry_in(gateway)
    board.carry_in(agent)
    board.cut(gateway if lost == "gateway" else agent)
    if lost == "gateway":
        board.carry_out(agent)
        assert agent.aborted == dict.fromkeys([1, 2, 3], ResetCode.LINK_LOST)
    else:
        board.carry_out(gateway)
        assert gateway.aborted == dict.fromkeys(streams, ResetCode.LINK_LOST)
        gateway.endpoint.reset(kept, ResetCode.CANCELLED)
    board.carry_all()
    assert other.endpoint.stream_count == 0
    assert_nothing_is_left(board)


def test_a_link_that_dies_with_a_full_outbox_is_not_counted_for_ever() -> None:
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    (stream_id, *_) = stall(board, gateway, agent, [200_000] * 3)
    agent.port.ping(0.0)
    agent.port.mark_dirty()
    board.switch.settle()
    # One route is already forgotten, with its bytes still waiting.
    gateway.endpoint.finish(stream_id)
    board.say(agent, fin(1))
    board.carry_all(but=agent)
    board.cut(agent)
    board.carry_all()
    assert board.switch.buffered_bytes == 0
    assert_nothing_is_left(board)


def test_a_revoked_tunnels_streams_end_with_that_word() -> None:
    board = Switchboard()
    gateway, agent = board.gateway(), board.agent()
    streams = [open_stream(board, gateway) for _ in range(3)]
    board.switch.abort_all(agent.port, ResetCode.REVOKED)
    board.carry_all()
    assert gateway.aborted == dict.fromkeys(streams, ResetCode.REVOKED)
    assert_nothing_is_left(board)


# -- everything at once, against the simplest model: what was written is what arrives


SIZES = st.integers(1, 2000)
operation = st.one_of(
    st.tuples(st.just("open"), st.integers(0, 1), st.integers(0, 1), st.just(0)),
    st.tuples(
        st.sampled_from(["write", "write", "write", "read", "finish", "reset"]),
        st.integers(0, 3),
        st.integers(0, 9),
        SIZES,
    ),
    st.tuples(
        st.sampled_from(["in", "out", "in", "out", "all"]),
        st.integers(0, 3),
        st.just(0),
        st.integers(1500, 6000),
    ),
    st.tuples(st.just("cut"), st.integers(0, 30), st.just(0), st.just(0)),
)


# Not `st.lists(operation)`: those are five long on average.
operations_of_any_length = st.integers(0, 120).flatmap(
    lambda length: st.lists(operation, min_size=length, max_size=length)
)


class Model:
    """What each end wrote, by the route it belongs to."""

    def __init__(self) -> None:
        limits = SwitchLimits(link_high_bytes=3000, link_low_bytes=1000, streams_per_tunnel=4)
        self.board = board = Switchboard(limits)
        self.ends = [
            board.gateway("g1", initial_credit=1500),
            board.gateway("g2", initial_credit=4000),
            board.agent("t0", "a1", initial_credit=1000),
            board.agent("t1", "a2", initial_credit=3000),
        ]
        self.written: defaultdict[tuple[int, int], bytes] = defaultdict(bytes)
        self.silent: set[tuple[int, int]] = set()
        """Ends of streams that wrote their last byte."""
        self.cut_short: set[tuple[int, int]] = set()
        self.partner: dict[tuple[int, int], tuple[int, int]] = {}
        for end in self.ends:
            end.reads = False

    def apply(self, verb: str, at: int, which: int, size: int) -> None:
        self.board.now += 0.001
        if verb == "open":
            end = self.ends[at]
            if end.is_up:
                end.endpoint.open(f"t{which}", self.board.now)
        elif verb == "all":
            self.board.carry_all()
        elif verb == "cut":
            self._cut(at)
        elif verb in {"in", "out"}:
            carry = self.board.carry_in if verb == "in" else self.board.carry_out
            carry(self.ends[at], size)
        else:
            self._use(verb, at, which, size)
        self._note_routes()
        assert self.board.switch.buffered_bytes == self.board.buffered_in_truth()

    def _cut(self, at: int) -> None:
        if at < len(self.ends) and self.ends[at].is_up:
            self.board.cut(self.ends[at])

    def _use(self, verb: str, at: int, which: int, size: int) -> None:
        end = self.ends[at]
        held = list(end.endpoint._streams)
        if not end.is_up or not held:
            return
        stream_id = held[which % len(held)]
        key = (at, stream_id)
        if verb == "read":
            end.read(stream_id, size, self.board.now)
        elif verb == "reset":
            end.endpoint.reset(stream_id, ResetCode.CANCELLED)
            self.cut_short.add(key)
        elif verb == "finish":
            end.endpoint.finish(stream_id)
            self.silent.add(key)
        elif key not in self.silent | self.cut_short and stream_id not in end.aborted:
            start = len(self.written[key])
            piece = bytes((start + n) % 251 for n in range(size))
            self.written[key] += piece
            end.endpoint.send(stream_id, piece)

    def _note_routes(self) -> None:
        index = {end.port: at for at, end in enumerate(self.ends)}
        for at, end in enumerate(self.ends):
            for stream_id, leg in end.port.legs.items():
                if leg.other is not None:
                    self.partner[at, stream_id] = (index[leg.other.port], leg.other.stream_id)

    def finish_everything(self) -> None:
        for _ in range(300):
            for end in self.board.live():
                for stream_id in list(end.endpoint._streams):
                    end.endpoint.finish(stream_id)
                    end.read(stream_id, 10**9, self.board.now)
                self.board.carry_in(end)
                self._note_routes()
                self.board.carry_out(end)
            if not any(end.endpoint.stream_count or end.port.legs for end in self.board.live()):
                return

    def was_cut_short(self, key: tuple[int, int]) -> bool:
        at, stream_id = key
        end = self.ends[at]
        return key in self.cut_short or stream_id in end.aborted or not end.is_up


@settings(max_examples=150, deadline=None)
@given(operations_of_any_length)
def test_every_byte_arrives_once_in_order_and_nothing_is_left_behind(
    operations: list[tuple[str, int, int, int]],
) -> None:
    model = Model()
    for what in operations:
        model.apply(*what)
    model.finish_everything()
    for key, partner in model.partner.items():
        at, stream_id = key
        arrived = model.ends[at].received[stream_id]
        assert model.written[partner].startswith(arrived)
        if not (model.was_cut_short(key) or model.was_cut_short(partner)):
            assert arrived == model.written[partner]
            assert model.ends[at].finished.count(stream_id) == 1
    model.board.carry_all()
    assert_nothing_is_left(model.board)
    for end in model.board.live():
        # Nobody is charged for more than premature resets and frames that crossed.
        assert end.port._budget._tokens > 199 - len(operations)
        assert end.endpoint._budget._tokens > 199 - len(operations) / 4
