"""From one connection to another: a request's body on, its response back, paced by both ends.

Small messages are one write each way. Large and slow ones go piece by piece, by callback; each
end's back-pressure pauses the other, so that what is kept is a read and the transports' marks.
"""

from collections.abc import Callable

from byoai_shared.http1.client import ClientConnection, Response
from byoai_shared.http1.framing import end_to_end
from byoai_shared.http1.head import RequestHead, ResponseHead
from byoai_shared.http1.request import ServerRequest

Rewrite = Callable[[ResponseHead], ResponseHead]


def without_hop_by_hop(head: ResponseHead) -> ResponseHead:
    """Return `head` as the next hop may see it."""
    return ResponseHead(head.status, end_to_end(head.headers), head.reason)


async def forward(
    request: ServerRequest,
    head: RequestHead,
    connection: ClientConnection,
    *,
    head_timeout_s: float | None = None,
    rewrite: Rewrite = without_hop_by_hop,
) -> None:
    """Send `head` with the body of `request` to `connection`, and its response back.

    `head` is made by the caller: end-to-end headers only (see `framing.end_to_end`), and
    Content-Length only if the body still has it. Raises HttpError from `connection`: before
    `request.is_answered` the caller may answer otherwise; afterwards it must let the error
    pass, which cuts the client's connection.
    """
    response = await send(request, head, connection, head_timeout_s=head_timeout_s)
    await answer(request, response, rewrite=rewrite)


async def send(
    request: ServerRequest,
    head: RequestHead,
    connection: ClientConnection,
    *,
    head_timeout_s: float | None = None,
) -> Response:
    """Send `head` with the body of `request`; return the response once its head has come.

    The body goes on by itself while the response is read.
    """
    body = request.body
    return await connection.request(
        head, body.take() if body.complete else body, head_timeout_s=head_timeout_s
    )


async def answer(
    request: ServerRequest, response: Response, *, rewrite: Rewrite = without_hop_by_hop
) -> None:
    """Answer `request` with `response`; return when it is complete.

    Raises HttpError when the response will not be; the client's connection must then be cut,
    which letting the error pass does.
    """
    head = rewrite(response.head)
    if response.body.complete:
        request.respond_with(head, response.body.take())
        return
    if response.body.error is not None:
        # Known before a byte was sent: there is still time to say so.
        raise response.body.error.copied()
    await response.pipe(request.start_response(head, hold_head=True))
