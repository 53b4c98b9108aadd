"""What agents call: joining with a code, then renewing and fetching tokens with their key."""

from collections.abc import Sequence
from http import HTTPStatus

from byoai_gateway.api.calls import Access, AnyCall, Call, Incoming
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.join_limit import JoinLimit
from byoai_shared.enrolment import (
    EnrolRequest,
    EnrolResponse,
    RenewRequest,
    RenewResponse,
    TokenRequest,
    TokenResponse,
)


class AgentCalls:
    """The agents' calls."""

    def __init__(self, control: ControlPlane) -> None:
        self._enrolment = control.enrolment
        self._join_limit = JoinLimit(control.config.limits.join_tries_per_minute)

    def calls(self) -> Sequence[AnyCall]:
        """All of them."""
        agent = Access.AGENT
        forbidden = HTTPStatus.FORBIDDEN
        proven = (HTTPStatus.UNAUTHORIZED, forbidden, HTTPStatus.TOO_MANY_REQUESTS)
        return (
            Call(
                *("POST", "/agent/v1/enrol", "Join a tunnel with a join code", agent),
                *(EnrolRequest, EnrolResponse, self.enrol),
                refusals=(
                    *(forbidden, HTTPStatus.CONFLICT, HTTPStatus.GONE),
                    HTTPStatus.TOO_MANY_REQUESTS,
                ),
            ),
            Call(
                *("POST", "/agent/v1/renew", "Get a certificate for a new link key", agent),
                *(RenewRequest, RenewResponse, self.renew),
                refusals=proven,
            ),
            Call(
                *("POST", "/agent/v1/token", "Get the next tunnel token", agent),
                *(TokenRequest, TokenResponse, self.token),
                refusals=proven,
            ),
        )

    async def enrol(self, incoming: Incoming, body: EnrolRequest) -> EnrolResponse:
        """Make an agent out of a join code; every try of an address counts."""
        await self._join_limit.count(incoming.address)
        return await self._enrolment.enrol(body)

    async def renew(self, _: Incoming, body: RenewRequest) -> RenewResponse:
        """Give an agent its next certificate."""
        return await self._enrolment.renew(body)

    async def token(self, _: Incoming, body: TokenRequest) -> TokenResponse:
        """Give an agent its next token."""
        return await self._enrolment.token(body)
