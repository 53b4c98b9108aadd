"""What users do with their tunnels. The user is always the token's; all is looked up by them."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated

from msgspec import Meta

from byoai_gateway.api.bodies import Asked, AskedByUser
from byoai_gateway.api.calls import Access, AnyCall, Call, Incoming, NoBody
from byoai_gateway.api.field_errors import PRINTABLE
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.model_names import ModelName, wrong_names
from byoai_gateway.refusals import invalid_fields, plan_required
from byoai_gateway.registry import Invitation
from byoai_gateway.status import PresenceDirectory, Shown, TunnelShown, show_tunnel
from byoai_gateway.tunnel_rows import ModelInfo, Tunnel
from byoai_gateway.users import User
from byoai_shared.joincode import JoinCode, encode

Capability = Annotated[str, Meta(max_length=64, pattern=PRINTABLE)]


class ModelAsked(Asked, frozen=True):
    """What the user says of the model behind the tunnel."""

    name: ModelName
    capabilities: Annotated[tuple[Capability, ...], Meta(max_length=16)] = ("text-generation",)


class RegisterAsked(AskedByUser, frozen=True, kw_only=True):
    """`POST /api/tunnel/register`."""

    model_info: ModelAsked


class Invited(Shown, frozen=True):
    """A join code, shown this once. Times are Unix seconds."""

    tunnel_id: str
    join_code: str
    join_command: Annotated[str, Meta(description="to run on the GPU host")]
    expires_at: int

    def __repr__(self) -> str:
        return f"Invited(tunnel_id={self.tunnel_id!r}, join_code=***)"


class TunnelsShown(Shown, frozen=True):
    """All tunnels of the user, the newest first."""

    tunnels: tuple[TunnelShown, ...]


class Rotated(Shown, frozen=True):
    """How far the change to a new authentication key is."""

    tunnel_id: str
    agents_to_fetch: Annotated[
        int,
        Meta(
            description="agents that get the new key with their next token; until then the "
            "old one goes on being used"
        ),
    ]


class Removed(Shown, frozen=True):
    """What is no more."""

    tunnel_id: str
    agent_id: str | None = None


class Unlocked(Shown, frozen=True):
    """An agent that may go on."""

    tunnel_id: str
    agent_id: str


class TunnelCalls:
    """The users' calls."""

    def __init__(self, control: ControlPlane, presence: PresenceDirectory) -> None:
        self._control = control
        self._registry = control.registry
        self._presence = presence

    def calls(self) -> Sequence[AnyCall]:
        """All of them."""
        missing = (HTTPStatus.NOT_FOUND,)
        user = Access.USER
        one = "/api/tunnel/{tunnelId}"
        return (
            Call(
                *("POST", "/api/tunnel/register", "Register a tunnel", user),
                *(RegisterAsked, Invited, self.register),
                refusals=(HTTPStatus.FORBIDDEN, HTTPStatus.CONFLICT),
                status=HTTPStatus.CREATED,
            ),
            Call(
                *("GET", "/api/tunnel", "List the user's tunnels", user),
                *(NoBody, TunnelsShown, self.list_all),
            ),
            Call(
                *("GET", "/api/tunnel/status/{tunnelId}", "Show how a tunnel is", user),
                *(NoBody, TunnelShown, self.status),
                refusals=missing,
            ),
            Call(
                *("DELETE", one, "Revoke a tunnel: it ends within seconds", user),
                *(NoBody, Removed, self.revoke),
                refusals=missing,
            ),
            Call(
                *("POST", one + "/rotate", "Give it a new authentication key", user),
                *(NoBody, Rotated, self.rotate),
                refusals=missing,
            ),
            Call(
                *("POST", one + "/agents", "Get a join code for another agent", user),
                *(NoBody, Invited, self.invite),
                refusals=(HTTPStatus.FORBIDDEN, HTTPStatus.CONFLICT, *missing),
                status=HTTPStatus.CREATED,
            ),
            Call(
                *("DELETE", one + "/agents/{agentId}", "Remove one agent", user),
                *(NoBody, Removed, self.remove_agent),
                refusals=missing,
            ),
            Call(
                *("POST", one + "/agents/{agentId}/unlock", "Unlock one agent", user),
                *(NoBody, Unlocked, self.unlock_agent),
                refusals=missing,
            ),
        )

    async def register(self, incoming: Incoming, body: RegisterAsked) -> Invited:
        """Make a tunnel for a user whose plan has them."""
        _require_pro(incoming.user)
        if wrong := wrong_names({"modelInfo.name": body.model_info.name}):
            raise invalid_fields(wrong)
        model = ModelInfo(body.model_info.name, body.model_info.capabilities)
        return self._invited(await self._registry.register(incoming.user.user_id, model))

    async def list_all(self, incoming: Incoming, _: NoBody) -> TunnelsShown:
        """Show every tunnel of the user."""
        tunnels = await self._registry.tunnels_of(incoming.user.user_id)
        return TunnelsShown(tunnels=tuple([await self._show(tunnel) for tunnel in tunnels]))

    async def status(self, incoming: Incoming, _: NoBody) -> TunnelShown:
        """Show one tunnel."""
        return await self._show(await self._registry.find(*_which(incoming)))

    async def revoke(self, incoming: Incoming, _: NoBody) -> Removed:
        """End a tunnel and tell the relays."""
        user_id, tunnel_id = _which(incoming)
        await self._registry.revoke(user_id, tunnel_id)
        await self._control.trust.publish()
        return Removed(tunnel_id=tunnel_id)

    async def rotate(self, incoming: Incoming, _: NoBody) -> Rotated:
        """Begin, or look at, the change to a new authentication key."""
        user_id, tunnel_id = _which(incoming)
        force = await self._registry.rotate(user_id, tunnel_id)
        return Rotated(tunnel_id=tunnel_id, agents_to_fetch=force.waiting_for)

    async def invite(self, incoming: Incoming, _: NoBody) -> Invited:
        """Make a join code for one more agent."""
        _require_pro(incoming.user)
        return self._invited(await self._registry.invite(*_which(incoming)))

    async def remove_agent(self, incoming: Incoming, _: NoBody) -> Removed:
        """End one agent and tell the relays."""
        user_id, tunnel_id = _which(incoming)
        agent_id = incoming.path["agentId"]
        await self._registry.remove_agent(user_id, tunnel_id, agent_id)
        await self._control.trust.publish()
        return Removed(tunnel_id=tunnel_id, agent_id=agent_id)

    async def unlock_agent(self, incoming: Incoming, _: NoBody) -> Unlocked:
        """Let an agent go on that was locked because one of its old keys was used again."""
        user_id, tunnel_id = _which(incoming)
        agent_id = incoming.path["agentId"]
        await self._registry.unlock_agent(user_id, tunnel_id, agent_id)
        await self._control.trust.publish()
        return Unlocked(tunnel_id=tunnel_id, agent_id=agent_id)

    async def _show(self, tunnel: Tunnel) -> TunnelShown:
        agents = await self._registry.agents_of(tunnel.tunnel_id)
        return show_tunnel(tunnel, agents, self._presence, self._control.clock())

    def _invited(self, invitation: Invitation) -> Invited:
        ca = self._control.private_ca
        code = encode(
            JoinCode(
                self._control.config.public_url,
                invitation.tunnel_id,
                invitation.secret,
                ca.sha256 if ca else None,
            )
        )
        return Invited(
            tunnel_id=invitation.tunnel_id,
            join_code=code,
            join_command=f"byoai-agent join {code}",
            expires_at=invitation.expires_at,
        )


def _require_pro(user: User) -> None:
    if not user.may_self_host:
        raise plan_required()


def _which(incoming: Incoming) -> tuple[str, str]:
    return incoming.user.user_id, incoming.path["tunnelId"]
