"""The `self-hosted` provider behind a tunnel: the user's own model server, by way of their agent.

The request's head is made anew: who asks is proven by the tunnel's authentication key, not by
the user's token, which stays here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import msgspec

from byoai_gateway.absence import Absence
from byoai_gateway.model_choice import ModelPreference, ServerOffer
from byoai_gateway.providers.agent_failures import failure_of_agent
from byoai_gateway.providers.requests import PASSED, prepared
from byoai_gateway.providers.server_models import server_model
from byoai_gateway.reported_models import reported, reports
from byoai_gateway.router.agent_choice import Candidate
from byoai_gateway.router.classify import (
    agent_absent,
    failure_of_error,
    failure_of_status,
    tunnel_busy,
    tunnel_throttled,
    unreachable,
    untrusted,
)
from byoai_gateway.router.error_shapes import read_body, sentence
from byoai_gateway.router.failures import AttemptFailed, Failure
from byoai_gateway.router.upstream import Call, Prepared, ProviderName, Timers
from byoai_gateway.tunnel_client import (
    TunnelBusy,
    TunnelClient,
    TunnelError,
    TunnelOffline,
    TunnelThrottled,
    TunnelUntrusted,
)
from byoai_shared.agent_errors import HEADER
from byoai_shared.http1.client import ClientConnection
from byoai_shared.http1.head import Headers, header
from byoai_shared.identity import tunnel_hostname
from byoai_shared.logs import get_logger
from byoai_shared.protocol.control import Status, UpstreamHealth
from byoai_shared.secret import Secret

log = get_logger("gateway")


@dataclass(frozen=True, slots=True)
class Route:
    """Where a user's requests go."""

    tunnel_id: str
    authentication_key: Secret
    model: str
    """The one that the tunnel was registered for."""
    capabilities: tuple[str, ...] = ()
    """What the user said that this model can do; nothing: it was not said."""


class TunnelUpstream(msgspec.Struct, frozen=True):
    """A user's tunnel, for one request; an `Upstream`."""

    route: Route
    tunnels: TunnelClient
    timers: Timers
    passed: frozenset[bytes] = PASSED
    """Names of the headers that it gets of a user's request."""
    preference: ModelPreference = ModelPreference()
    statuses: Callable[[str], Mapping[str, Status]] = lambda _: {}
    """Tells what each agent of a tunnel said of itself last."""
    agent_id: str = ""
    """The agent to ask; without it, one that the relay chooses."""

    @property
    def provider(self) -> ProviderName:
        """See `Upstream`."""
        return ProviderName.SELF_HOSTED

    @property
    def server(self) -> str:
        """See `Upstream`."""
        return self.route.tunnel_id

    def own_answer(self, call: Call) -> bytes | None:
        """See `Upstream`."""
        del call
        return None

    @property
    def offer(self) -> ServerOffer:
        """What its agents report."""
        return reported(reports(self.statuses(self.route.tunnel_id)), self.route.model)

    def learn(self, call: Call) -> None:
        """See `Upstream`; the agents report their models by themselves."""

    def prepare(self, call: Call) -> Prepared:
        """See `Upstream`; what may pass is the agent's to say."""
        own: Headers = (
            (b"host", tunnel_hostname(self.route.tunnel_id).encode()),
            (b"authorization", b"Bearer " + self.route.authentication_key.reveal().encode()),
            (b"x-request-id", call.request_id.encode()),
        )
        model = server_model(call, call.model, self.preference, self.offer)
        target = call.head.target
        return prepared(call, target=target, own=own, model=model, passed=self.passed)

    def candidates(self, model: str | None) -> Sequence[Candidate]:
        """See `Upstream`."""
        tunnel_id, in_use = self.route.tunnel_id, self.tunnels.in_use
        statuses = self.statuses(tunnel_id)
        if len(statuses) < 2:
            return ()
        return [
            Candidate(
                agent_id,
                is_down=status.health is UpstreamHealth.DOWN,
                has_model=model is None or not status.models or model in status.models,
                # A report is older than the requests that were sent meanwhile.
                load=max(status.in_flight + status.queued, in_use(tunnel_id, agent_id))
                / max(1, status.capacity),
            )
            for agent_id, status in statuses.items()
        ]

    def by_agent(self, agent_id: str) -> Self:
        """See `Upstream`."""
        return msgspec.structs.replace(self, agent_id=agent_id)

    def take_fresh(self) -> ClientConnection | None:
        """See `Upstream`."""
        return self.tunnels.take_fresh(self.route.tunnel_id, self.agent_id)

    async def absence(self) -> Absence:
        """Why no agent of the tunnel can be reached, where none can."""
        return await self.tunnels.absence(self.route.tunnel_id)

    async def acquire(self) -> ClientConnection:
        """See `Upstream`."""
        try:
            return await self.tunnels.acquire(self.route.tunnel_id, self.agent_id)
        except TunnelOffline as error:
            absence = error.absence
            failure = agent_absent(absence.kind, absence.message, absence.retry_after_s)
            raise AttemptFailed(failure) from error
        except TunnelThrottled as error:
            raise AttemptFailed(tunnel_throttled()) from error
        except TunnelBusy as error:
            raise AttemptFailed(tunnel_busy()) from error
        except TunnelUntrusted as error:
            tunnel_id = self.route.tunnel_id
            log.warning("tunnel.untrusted", tunnel_id=tunnel_id, reason=str(error), next="refused")
            raise AttemptFailed(untrusted(str(error))) from error
        except TunnelError as error:
            raise AttemptFailed(unreachable(self.provider, str(error))) from error

    def release(self, connection: ClientConnection) -> None:
        """See `Upstream`."""
        self.tunnels.release(self.route.tunnel_id, connection, self.agent_id)

    def explain(self, status: int, headers: Headers, body: bytes) -> Failure:
        """See `Upstream`."""
        failure = failure_of_status(self.provider, status, headers, body)
        code = header(headers, HEADER)
        if code is None:
            return failure
        return failure_of_agent(failure, code, read_body(body).message or sentence(status))

    def explain_error(self, error: msgspec.Raw) -> Failure:
        """See `Upstream`."""
        return failure_of_error(self.provider, error)
