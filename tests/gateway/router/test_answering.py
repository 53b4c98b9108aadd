from byoai_gateway.router.answering import Answering, Tale
from byoai_gateway.router.endpoints import CHAT
from byoai_gateway.router.upstream import Call
from byoai_shared.http1.head import DEFAULT_LIMITS, RequestHead
from byoai_shared.http1.incoming import IncomingBody
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.server import ServerConnection


def test_the_model_stands_in_a_header_whatever_its_name() -> None:
    tale = Tale(attempts=1, model="vendor/modèle 7b:free~x\u2028")
    told = dict(tale.headers())[b"x-byoai-model"]
    assert told == b"vendor/mod%C3%A8le%207b:free~x%E2%80%A8"
    assert tale.comments().count(b"\n") == 3
    assert b"x-byoai-model" not in dict(Tale(attempts=1).headers())


async def test_a_comment_for_a_client_that_is_gone_already_is_no_error() -> None:
    """A timer may fire between the loss of a connection and the end of its request's task."""

    async def never(request: ServerRequest) -> None:
        raise AssertionError(request)

    head = RequestHead("POST", "/v1/chat/completions")
    lost = ServerConnection(never, DEFAULT_LIMITS)
    body = IncomingBody(lost, 0, buffer_bytes=0, max_overhead_bytes=0)
    request = ServerRequest(head, body, lost)
    call = Call(CHAT, head, b"{}", {}, None, True, False, "id-1")
    answering = Answering(request, call, Tale())
    answering.keep_alive()
    assert not answering.is_begun
