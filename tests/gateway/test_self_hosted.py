import pytest

from byoai_gateway.self_hosted import Route, tunnel_request
from byoai_shared.http1.head import RequestHead
from byoai_shared.identity import new_tunnel_id
from byoai_shared.secret import Secret

TUNNEL_ID = new_tunnel_id()


def travelling(*headers: tuple[bytes, bytes]) -> dict[bytes, bytes]:
    head = RequestHead("POST", "/v1/chat/completions", ((b"host", b"api.example"), *headers))
    made = tunnel_request(head, Route(TUNNEL_ID, Secret("the-tunnels-key")), "id-7")
    assert (made.method, made.target) == (head.method, head.target)
    assert len(dict(made.headers)) == len(made.headers)
    return dict(made.headers)


def test_the_head_that_travels_speaks_for_the_gateway() -> None:
    assert travelling((b"content-type", b"application/json"), (b"traceparent", b"00-1-2-01")) == {
        b"host": f"{TUNNEL_ID}.tunnel.internal".encode(),
        b"authorization": b"Bearer the-tunnels-key",
        b"x-request-id": b"id-7",
        b"content-type": b"application/json",
        b"traceparent": b"00-1-2-01",
    }


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
