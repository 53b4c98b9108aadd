"""A request on its way through a tunnel."""

from typing import cast

import msgspec
import pytest

from byoai_gateway.absence import never_joined, no_relay, not_connected
from byoai_gateway.providers.requests import passed_headers
from byoai_gateway.providers.tunnel import Route, TunnelUpstream
from byoai_gateway.router.agent_choice import Candidate
from byoai_gateway.router.endpoints import CHAT, MODELS, Endpoint
from byoai_gateway.router.failures import AttemptFailed, FailureKind
from byoai_gateway.router.upstream import Call, Fields, ProviderName, Timers
from byoai_gateway.tunnel_client import (
    TunnelBusy,
    TunnelClient,
    TunnelError,
    TunnelLost,
    TunnelOffline,
    TunnelThrottled,
    TunnelUntrusted,
)
from byoai_shared.http1.client import ClientConnection
from byoai_shared.http1.head import RequestHead
from byoai_shared.identity import new_tunnel_id
from byoai_shared.protocol.control import Status, UpstreamHealth
from byoai_shared.secret import Secret

TUNNEL_ID = new_tunnel_id()
TIMERS = Timers(1.0, 1.0, 1.0)


class Refusing:
    """Tunnels that cannot be used."""

    def __init__(self, error: TunnelError | None = None) -> None:
        self.error = error

    async def acquire(self, tunnel_id: str, agent_id: str = "") -> ClientConnection:
        assert (tunnel_id, agent_id) == (TUNNEL_ID, "")
        assert self.error is not None
        raise self.error


def upstream(error: TunnelError | None = None) -> TunnelUpstream:
    route = Route(TUNNEL_ID, Secret("the-tunnels-key"), "registered")
    return TunnelUpstream(route, cast("TunnelClient", Refusing(error)), TIMERS)


def call(
    *headers: tuple[bytes, bytes], model: str | None = None, endpoint: Endpoint = MODELS
) -> Call:
    target = "/v1" + endpoint.path
    head = RequestHead(endpoint.method, target, ((b"host", b"api.example"), *headers))
    fields: Fields | None = {} if endpoint is CHAT else None
    return Call(endpoint, head, b"{}", fields, model, False, False, "id-7")


def travelling(*headers: tuple[bytes, bytes]) -> dict[bytes, bytes]:
    made = upstream().prepare(call(*headers)).head
    assert (made.method, made.target) == ("GET", "/v1/models")
    assert len(dict(made.headers)) == len(made.headers)
    return dict(made.headers)


def test_the_head_that_travels_speaks_for_the_gateway() -> None:
    made = travelling((b"content-type", b"application/json"), (b"traceparent", b"00-1-2-01"))
    assert made == {
        b"host": f"{TUNNEL_ID}.tunnel.internal".encode(),
        b"authorization": b"Bearer the-tunnels-key",
        b"x-request-id": b"id-7",
        b"accept-encoding": b"identity",
        b"cdn-loop": b"byoai",
        b"content-type": b"application/json",
        b"traceparent": b"00-1-2-01",
    }


def test_what_the_operator_named_travels_too() -> None:
    named = msgspec.structs.replace(upstream(), passed=passed_headers(("x-tenant",)))
    head = named.prepare(call((b"x-tenant", b"a"), (b"x-other", b"b"))).head
    assert (head.header(b"x-tenant"), head.header(b"x-other")) == (b"a", None)


@pytest.mark.parametrize(
    "name",
    [
        b"authorization",
        b"cookie",
        b"x-request-id",
        b"x-byoai-tunnel",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-real-ip",
        b"forwarded",
        b"connection",
        b"proxy-authorization",
        b"expect",
    ],
)
def test_what_is_between_client_and_gateway_stays_there(name: bytes) -> None:
    assert b"canary" not in b" ".join(travelling((name, b"canary")).values())


@pytest.mark.parametrize("asked", [None, "", "default"])
def test_who_names_no_model_gets_the_one_the_tunnel_was_registered_for(asked: str | None) -> None:
    prepared = upstream().prepare(call(model=asked, endpoint=CHAT))
    assert (prepared.model, prepared.body) == ("registered", b'{"model":"registered"}')


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (TunnelOffline(not_connected()), FailureKind.AGENT_OFFLINE, "agent_offline"),
        (TunnelOffline(no_relay(1)), FailureKind.NO_RELAY_CONNECTED, "no_relay_connected"),
        (TunnelOffline(never_joined()), FailureKind.AGENT_NEVER_JOINED, "agent_never_joined"),
        (TunnelBusy("full"), FailureKind.TUNNEL_BUSY, "tunnel_busy"),
        (TunnelThrottled("rests"), FailureKind.TUNNEL_BUSY, "tunnel_throttled"),
        (TunnelUntrusted("another"), FailureKind.AGENT_OFFLINE, "tunnel_untrusted"),
        (TunnelLost("cut"), FailureKind.UNREACHABLE, "unreachable"),
    ],
)
async def test_a_tunnel_that_cannot_be_used_says_why(
    error: TunnelError, kind: FailureKind, code: str
) -> None:
    asked = upstream(error)
    assert asked.provider is ProviderName.SELF_HOSTED
    with pytest.raises(AttemptFailed) as failed:
        await asked.acquire()
    assert failed.value.failure.kind is kind
    assert failed.value.failure.error.code == code


class InUse:
    """Tunnels to whose agents this gateway has sent requests."""

    def in_use(self, tunnel_id: str, agent_id: str) -> int:
        assert tunnel_id == TUNNEL_ID
        return {"b": 6}.get(agent_id, 0)


def offered(**statuses: Status) -> TunnelUpstream:
    route = Route(TUNNEL_ID, Secret("the-tunnels-key"), "registered")
    tunnels = cast("TunnelClient", InUse())
    return TunnelUpstream(route, tunnels, TIMERS, statuses=lambda _: statuses)


def test_one_agent_leaves_nothing_to_choose() -> None:
    assert offered().candidates("m") == ()
    assert offered(a=Status()).candidates("m") == ()


def test_each_agent_is_a_candidate_with_its_health_model_and_load() -> None:
    asked = offered(
        a=Status(models=("m",), in_flight=1, queued=2, capacity=4),
        b=Status(models=("other",), in_flight=1, capacity=4, health=UpstreamHealth.DOWN),
        c=Status(),
    )
    assert asked.candidates("m") == [
        Candidate("a", load=0.75),
        Candidate("b", is_down=True, has_model=False, load=1.5),
        Candidate("c"),
    ]
    assert all(it.has_model for it in asked.candidates(None))
    assert asked.by_agent("b").agent_id == "b"
