"""Control payloads: strict where a peer could do harm, lenient where it may be newer."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_shared.protocol.control import (
    MAX_STATUS_BYTES,
    Auth,
    AuthOk,
    Control,
    Goaway,
    Hello,
    Open,
    Presence,
    PresenceState,
    Role,
    Status,
    clamp_us,
    decode_control,
    encode_control,
    fit_status,
)
from byoai_shared.protocol.errors import RemoteProtocolError
from byoai_shared.protocol.frames import MAX_PAYLOAD_BYTES
from byoai_shared.protocol.trust import Trust, TrustHeld
from support.trusts import denials, whole

EXAMPLES: list[Control] = [
    Hello(role=Role.AGENT, node="a1", instance="i1", epoch=3, versions=(1, 2), software="x/1"),
    Auth(token="t"),
    AuthOk(accepted_until=1_900_000_000),
    Status(models=("llama",), capabilities=("embeddings",), in_flight=1, queued=2, capacity=3),
    whole(4, ({"kid": "k"},), denials("t")),
    TrustHeld(revision=4, digest="d", wanted=True),
    TrustHeld(revision=4, digest="d", unix_time=1_800_000_000),
    Presence(tunnel_id="t", agent_id="a", instance="i", epoch=1, state=PresenceState.ONLINE),
    Goaway(code=4000, reason="draining", retry_after_ms=5),
    Open(credit=1, tunnel_id="t", agent_id="a", dialer="g", round_trip_us=7),
]


@pytest.mark.parametrize("payload", EXAMPLES, ids=lambda payload: type(payload).__name__)
def test_a_payload_comes_back_as_it_was(payload: Control) -> None:
    assert decode_control(type(payload), encode_control(payload)) == payload


@pytest.mark.parametrize("payload", EXAMPLES, ids=lambda payload: type(payload).__name__)
def test_a_field_of_a_newer_peer_is_ignored(payload: Control) -> None:
    fields = json.loads(encode_control(payload)) | {"somethingNew": {"deep": [1]}}
    assert decode_control(type(payload), json.dumps(fields).encode()) == payload


@pytest.mark.parametrize("payload", EXAMPLES, ids=lambda payload: type(payload).__name__)
def test_a_payload_cut_anywhere_is_refused_and_its_text_is_not_repeated(payload: Control) -> None:
    whole = encode_control(payload)
    for cut in range(len(whole)):
        with pytest.raises(
            RemoteProtocolError, match=f"^malformed {type(payload).__name__} payload$"
        ):
            decode_control(type(payload), whole[:cut])


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (Hello, '{"role": "emperor", "node": "n", "instance": "i"}'),
        (Hello, '{"role": "agent", "node": "", "instance": "i"}'),
        (Hello, '{"role": "agent", "node": "n"}'),
        (Hello, '{"role": "agent", "node": "n", "instance": "i", "epoch": -1}'),
        (Hello, '{"role": "agent", "node": "n", "instance": "i", "epoch": 9223372036854775808}'),
        (Hello, '{"role": "agent", "node": "n", "instance": "i", "initial_credit": 2147483648}'),
        (Hello, '{"role": "agent", "node": "n", "instance": "i", "versions": ["1"]}'),
        (Hello, json.dumps({"role": "agent", "node": "n", "instance": "i", "versions": [1] * 99})),
        (Hello, json.dumps({"role": "agent", "node": "n" * 256, "instance": "i"})),
        (Auth, json.dumps({"token": "x" * 4097})),
        (Auth, '{"token": 5}'),
        (AuthOk, '{"accepted_until": 1.5}'),
        (AuthOk, '{"accepted_until": 1' + "0" * 400 + "}"),
        (Status, '{"in_flight": -1}'),
        (Status, '{"health": "splendid"}'),
        (
            Trust,
            '{"revision":1,"base":0,"digest":"","issuer":"i","audience":"a","keys":[{"kid":1}]}',
        ),
        # A gateway of before denials were changes: its whole list must not pass for no change.
        (Trust, '{"revision":1,"issuer":"i","audience":"a","denied_tunnels":["t"]}'),
        (Goaway, '{"code": 4000, "retry_after_ms": 3600001}'),
        (Open, '{"credit": 4294967296}'),
        (Open, '{"credit": -1}'),
        (Open, '{"credit": true}'),
        (Open, "[]"),
        (Open, "null"),
        (Open, "[" * 30_000),
        (Open, '{"credit": NaN}'),
    ],
)
def test_an_ill_typed_payload_is_refused(type_: type[Control], text: str) -> None:
    with pytest.raises(RemoteProtocolError, match=f"malformed {type_.__name__} payload"):
        decode_control(type_, text.encode())


def test_bytes_that_are_no_utf_8_are_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="malformed Auth payload"):
        decode_control(Auth, b'{"token": "\xff\xfe"}')


def test_no_token_in_a_repr() -> None:
    assert "hush" not in repr(Auth(token="hush"))


@pytest.mark.parametrize(("seconds", "expected"), [(0.0015, 1500), (3.25, 3_250_000), (1e9, 60e6)])
def test_a_long_round_trip_is_told_and_understood(seconds: float, expected: float) -> None:
    # More than a second was once refused by the reader: one slow agent closed gateways' links.
    opening = Open(credit=1, round_trip_us=clamp_us(seconds))
    assert opening.round_trip_us == expected
    assert decode_control(Open, encode_control(opening)) == opening
    presence = Presence(
        tunnel_id="t",
        agent_id="a",
        instance="i",
        epoch=0,
        state=PresenceState.ONLINE,
        round_trip_us=clamp_us(seconds),
    )
    assert decode_control(Presence, encode_control(presence)) == presence


@given(st.lists(st.text(min_size=1, max_size=255), max_size=400))
def test_a_status_is_cut_to_what_a_relay_takes_and_passes_on(models: list[str]) -> None:
    status = Status(models=tuple(models), capabilities=("text-generation",), in_flight=3)
    fitted = fit_status(status)
    assert len(encode_control(fitted)) <= MAX_STATUS_BYTES
    assert fitted.models == status.models[: len(fitted.models)]
    assert fitted.in_flight == 3
    presence = Presence(
        tunnel_id="\x01" * 255,
        agent_id="\x01" * 255,
        instance="\x01" * 255,
        epoch=2**63 - 1,
        state=PresenceState.CHANGED,
        status=fitted,
    )
    assert len(encode_control(presence)) <= MAX_PAYLOAD_BYTES


def test_a_status_that_fits_is_left_alone() -> None:
    status = Status(models=("a", "b"))
    assert fit_status(status) is status
