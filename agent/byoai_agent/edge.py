"""Answers the requests of the tunnel: who may ask the model server what, and how it is asked.

In this order, and never in another: the request shows the tunnel's authentication key (that
its stream showed a gateway's certificate is `streams`' part), the policy knows the call, the
body is not too large, a model server has the model, there is a place. Then the request is
built anew and forwarded, and both bodies stream. It refuses everything else in OpenAI's error
shape, and it never ends an answer in order that the model server did not finish.

A caller that goes away ends its handler, and with it the connection to the model server, also
while that is silent: this is what stops the GPU.
"""

from collections.abc import Awaitable, Callable

import msgspec

from byoai_agent.admission import Admission, Busy
from byoai_agent.config import Limits
from byoai_agent.models import (
    Catalogue,
    NoSuchModel,
    Upstream,
)
from byoai_agent.policy import DescribeModel, Forward, ListModels, Names, Policy
from byoai_agent.refusals import (
    AgentRefusal,
    no_such_model,
    no_upstream,
    not_found,
    not_ready,
    unreadable,
    wrong_key,
)
from byoai_agent.rewriting import caller_head, upstream_headers, without_length
from byoai_agent.streams import Doors
from byoai_agent.upstreams import UpstreamPool, UpstreamUnreachable
from byoai_shared.agent_errors import AgentErrorCode
from byoai_shared.http1.client import ClientConnection
from byoai_shared.http1.errors import ConnectionClosed, HeadTimeout, HttpError, TruncatedMessage
from byoai_shared.http1.forward import answer, forward
from byoai_shared.http1.head import HttpLimits, RequestHead
from byoai_shared.http1.request import ServerRequest
from byoai_shared.logs import get_logger
from byoai_shared.protocol.control import UpstreamHealth
from byoai_shared.request_body.errors import UnreadableBody
from byoai_shared.request_body.reading import read_json, read_upload

log = get_logger("agent.edge")

_JSON = ((b"content-type", b"application/json"),)


class HeldBodies:
    """How many bytes of bodies are held at once to read their model, all told."""

    def __init__(self, total_bytes: int) -> None:
        self._free_bytes = total_bytes

    def take(self, size: int) -> None:
        """Set bytes aside.

        Raises:
            AgentRefusal: there is no room now.
        """
        if size > self._free_bytes:
            raise AgentRefusal(429, AgentErrorCode.AGENT_BUSY, "too many large requests at once", 1)
        self._free_bytes -= size

    def give_back(self, size: int) -> None:
        """Let others have them."""
        self._free_bytes += size


class Edge:
    """Answers the requests of all streams of one agent."""

    def __init__(
        self,
        *,
        policy: Policy,
        catalogue: Catalogue,
        pool: UpstreamPool,
        admission: Admission,
        limits: Limits,
        look_again: Callable[[], Awaitable[None]],
    ) -> None:
        self.admission = admission
        self._policy = policy
        self._catalogue = catalogue
        self._pool = pool
        self._limits = limits
        self._held = HeldBodies(limits.routing_total_bytes)
        self._look_again = look_again
        self.http_limits = HttpLimits(max_body_bytes=limits.max_body_bytes)

    async def handle(self, request: ServerRequest, doors: Doors) -> None:
        """Answer one request."""
        try:
            if not doors.admits(request.head.header(b"authorization")):
                raise wrong_key()
            await self._decide(request)
        except AgentRefusal as refusal:
            log.info("request.refused", status=refusal.status, code=refusal.code)
            request.respond(refusal.status, refusal.headers(), refusal.body())

    async def _decide(self, request: ServerRequest) -> None:
        head = request.head
        match self._policy.decide(head.method, head.target):
            case None:
                raise not_found(head.method, head.target)
            case ListModels():
                request.respond(200, _JSON, await self._listing())
            case DescribeModel(model):
                request.respond(200, _JSON, await self._description(model))
            case Forward() as call:
                await self._forward(request, call)

    async def _listing(self) -> bytes:
        await self._look_again()
        if self._catalogue.health() is UpstreamHealth.DOWN:
            if self._catalogue.is_waiting:
                raise not_ready(self._catalogue.faults())
            raise no_upstream(self._catalogue.faults())
        return msgspec.json.encode({"object": "list", "data": self._catalogue.listing()})

    async def _description(self, model: str) -> bytes:
        entry = self._catalogue.describe(model)
        if entry is None:
            await self._look_again()
            entry = self._catalogue.describe(model)
        if entry is None:
            raise no_such_model(f"no model server of this agent has a model {model!r}")
        return msgspec.json.encode(entry)

    async def _forward(self, request: ServerRequest, call: Forward) -> None:
        if call.names_model is Names.NOWHERE or not self._catalogue.model_decides:
            await self._pass_on(request, await self._route(None), call.path, None)
            return
        size = self._size_to_hold(request)
        self._held.take(size)
        try:
            body = await request.read(self._limits.routing_body_bytes)
            upstream = await self._route(_named_model(request, call.names_model, body))
            await self._pass_on(request, upstream, call.path, body)
        finally:
            self._held.give_back(size)

    def _size_to_hold(self, request: ServerRequest) -> int:
        """What a body may need: a chunked one does not say, so it is given the most."""
        framing = request.body.framing
        limit = self._limits.routing_body_bytes
        return min(framing, limit) if isinstance(framing, int) else limit

    async def _route(self, model: str | None) -> Upstream:
        routed = self._catalogue.route(model)
        if routed is None or isinstance(routed, NoSuchModel):
            # A model that was pulled, or a server that was started, a moment ago.
            await self._look_again()
            routed = self._catalogue.route(model)
        if routed is None:
            raise no_upstream()
        if isinstance(routed, NoSuchModel):
            raise no_such_model(routed.reason)
        return routed

    async def _pass_on(
        self, request: ServerRequest, upstream: Upstream, path: str, body: bytes | None
    ) -> None:
        try:
            async with self.admission.place():
                await self._exchange(request, upstream, path, body)
        except Busy as busy:
            raise AgentRefusal(
                429, AgentErrorCode.AGENT_BUSY, str(busy), busy.retry_after_s
            ) from busy

    async def _exchange(
        self, request: ServerRequest, upstream: Upstream, path: str, body: bytes | None
    ) -> None:
        target = upstream.target
        try:
            connection = await self._pool.acquire(target)
        except UpstreamUnreachable as error:
            message = f"the model server at {target.url} cannot be reached: {error}"
            raise AgentRefusal(502, AgentErrorCode.UPSTREAM_UNREACHABLE, message) from error
        headers = upstream_headers(request.head.headers, target.authority, target.key)
        head = RequestHead(request.head.method, target.prefix + path, headers)
        try:
            await self._send(request, head, connection, body)
        except HttpError as error:
            if request.is_answered:
                raise
            raise self._failure(error) from error
        finally:
            self._pool.release(target, connection)

    async def _send(
        self,
        request: ServerRequest,
        head: RequestHead,
        connection: ClientConnection,
        body: bytes | None,
    ) -> None:
        limit_s = self._limits.first_byte_s
        if body is None:
            await forward(request, head, connection, head_timeout_s=limit_s, rewrite=caller_head)
            return
        whole = RequestHead(head.method, head.target, without_length(head.headers))
        response = await connection.request(whole, body, head_timeout_s=limit_s)
        await answer(request, response, rewrite=caller_head)

    def _failure(self, error: HttpError) -> AgentRefusal:
        """What the caller gets when the model server gave no answer."""
        match error:
            case HeadTimeout():
                message = f"the model server sent nothing within {error.limit_s:g} s"
                return AgentRefusal(504, AgentErrorCode.UPSTREAM_TIMEOUT, message)
            case ConnectionClosed(request_sent=False):
                message = "the model server closed the connection before the request was sent"
                return AgentRefusal(502, AgentErrorCode.UPSTREAM_UNREACHABLE, message)
            case ConnectionClosed() | TruncatedMessage():
                message = "the model server closed the connection without an answer"
                return AgentRefusal(502, AgentErrorCode.UPSTREAM_DISCONNECTED, message)
            case _:
                message = f"the model server's answer was no valid HTTP: {error}"
                return AgentRefusal(502, AgentErrorCode.UPSTREAM_PROTOCOL_ERROR, message)


def _named_model(request: ServerRequest, where: Names, body: bytes) -> str | None:
    headers = request.head.headers
    read = read_upload if where is Names.FORM else read_json
    try:
        return read(headers, body).model
    except UnreadableBody as error:
        raise unreadable(str(error)) from None
