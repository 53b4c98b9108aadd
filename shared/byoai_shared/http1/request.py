"""One request at a server, as its handler sees it."""

import asyncio
from typing import Protocol

from byoai_shared.http1.head import Headers, RequestHead, ResponseHead
from byoai_shared.http1.incoming import IncomingBody
from byoai_shared.http1.outgoing import OutgoingBody
from byoai_shared.http1.pieces import PIECE_BYTES, Pieces


class Answering(Protocol):
    """The connection that a request came on."""

    is_answered: bool

    @property
    def transport(self) -> asyncio.Transport:
        """See `ServerRequest`."""
        ...

    def respond(self, head: ResponseHead, body: bytes) -> None:
        """See `ServerRequest`."""
        ...

    def start_response(self, head: ResponseHead, *, hold_head: bool) -> OutgoingBody:
        """See `ServerRequest`."""
        ...

    async def drained(self) -> None:
        """See `ServerRequest`."""
        ...

    def abort(self) -> None:
        """Cut the connection."""
        ...


class ServerRequest:
    """One request. Its handler answers with `respond`, or `start_response` and a body."""

    __slots__ = ("_connection", "body", "head")

    def __init__(self, head: RequestHead, body: IncomingBody, connection: Answering) -> None:
        self.head = head
        self.body = body
        self._connection = connection

    @property
    def transport(self) -> asyncio.Transport:
        """The connection's transport, for `get_extra_info`; not to be written to."""
        return self._connection.transport

    @property
    def is_answered(self) -> bool:
        """Say whether a response was begun."""
        return self._connection.is_answered

    async def read(self, limit: int) -> bytes:
        """Return the whole body. Raises BodyTooLarge, which unhandled is answered with 413."""
        return await self.body.read(limit)

    def respond(self, status: int, headers: Headers = (), body: bytes = b"") -> None:
        """Answer in one write; Content-Length is added."""
        self._connection.respond(ResponseHead(status, headers), body)

    def respond_with(self, head: ResponseHead, body: bytes = b"") -> None:
        """Answer in one write with a head that may declare its length already."""
        self._connection.respond(head, body)

    def respond_as_taken(self, head: ResponseHead, body: bytes) -> None:
        """Answer with a head that declares no length; a long body goes as the client takes it.

        The handler must await `drained` before it returns.
        """
        if len(body) <= PIECE_BYTES:
            self._connection.respond(head, body)
            return
        declared = (*head.headers, (b"content-length", b"%d" % len(body)))
        Pieces(body).attach(
            self.start_response(ResponseHead(head.status, declared), hold_head=True)
        )

    def start_response(self, head: ResponseHead, *, hold_head: bool = False) -> OutgoingBody:
        """Begin an answer whose body follows: chunked, unless Content-Length is declared.

        The head is sent now; with `hold_head` it waits for the first piece (or `flush`).
        """
        return self._connection.start_response(head, hold_head=hold_head)

    async def drained(self) -> None:
        """Wait until the client has taken what was written, but for what a transport may keep.

        A client that leaves meanwhile cancels the handler, as ever.
        """
        await self._connection.drained()

    def disconnect(self) -> None:
        """Cut the connection at once: the client sees that the answer is not whole."""
        self._connection.abort()
