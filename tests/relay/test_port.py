"""The relay's end of a link: whom it takes for whom, and what it counts."""

import pytest

from byoai_relay.directory import Directory
from byoai_relay.port import Port, SwitchLimits
from byoai_relay.switch import Switch
from byoai_shared.protocol import events as ev
from byoai_shared.protocol.control import Role
from byoai_shared.protocol.errors import CloseCode, RemoteProtocolError
from byoai_shared.protocol.frames import MAX_STREAM_ID
from support.switchboard import Switchboard
from support.transcript import close_code_of, hello, opening, say
from support.trusts import whole


def a_port(expected: tuple[Role, str] | None, tunnel_id: str = "") -> Port:
    switch = Switch(SwitchLimits(), Directory())
    return Port(
        switch,
        hello(Role.RELAY),
        wake=lambda: None,
        now=0.0,
        expected=expected,
        tunnel_id=tunnel_id,
    )


def test_an_agent_is_not_believed_to_be_a_gateway() -> None:
    # Were it, its next frames, in the same message, would replace the relay's trust.
    port = a_port((Role.AGENT, "a1"), "t1")
    takeover = whole(99, issuer="evil", audience="evil")
    events = port.receive(say(hello(Role.GATEWAY, "a1")) + say(takeover) + opening(1, "t2"), 0.0)
    assert events == [
        ev.LinkFailed(CloseCode.WRONG_ROLE, "HELLO of gateway a1, certificate of agent a1")
    ]
    assert port.legs == {}
    assert port.peer is None


@pytest.mark.parametrize(
    "expected", [None, (Role.GATEWAY, "g2"), (Role.AGENT, "g1"), (Role.RELAY, "g1")]
)
def test_hello_must_say_what_the_certificate_proves(expected: tuple[Role, str] | None) -> None:
    port = a_port(expected)
    assert close_code_of(port, say(hello(Role.GATEWAY, "g1"))) is CloseCode.WRONG_ROLE


def test_whom_the_certificate_proves_is_introduced() -> None:
    port = a_port((Role.AGENT, "a1"), "t1")
    agent = hello(Role.AGENT, "a1")
    assert port.receive(say(agent), 0.0) == [ev.PeerIntroduced(agent)]


def test_waiting_bytes_are_counted_once_however_often_the_port_is_looked_at() -> None:
    board = Switchboard()
    port = board.gateway().port
    port.ping(0.0)
    port.mark_dirty()
    port.mark_dirty()
    board.switch.settle()
    port.account()
    assert board.switch.buffered_bytes == port.outbox.queued_bytes == 16


def test_stream_ids_end() -> None:
    port = a_port((Role.AGENT, "a1"), "t1")
    port._last_stream_id = MAX_STREAM_ID - 1
    assert port.new_stream_id() == MAX_STREAM_ID
    with pytest.raises(RemoteProtocolError, match="used up its stream ids"):
        port.new_stream_id()
