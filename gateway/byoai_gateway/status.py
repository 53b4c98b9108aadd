"""What a tunnel's owner is shown of it: the registry's facts and what the relays say, together.

Pure. Who is online is asked of a `PresenceDirectory`, which the data path feeds from its links.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta, Struct

from byoai_gateway.absence import Absence, all_locked, never_joined
from byoai_gateway.agent_problems import Problem, problem_of
from byoai_gateway.tunnel_rows import Agent, Tunnel
from byoai_shared.identity import key_fingerprint
from byoai_shared.protocol.control import GoneReason, Presence, UpstreamHealth


class PresenceDirectory(Protocol):
    """Which agents are connected, as the relays announce them."""

    def agents_of(self, tunnel_id: str) -> Iterable[tuple[str, Presence]]:
        """What each relay says of each agent of a tunnel, as (relay, presence)."""
        ...

    def absence(self, tunnel_id: str) -> Absence:
        """Why no agent of a tunnel can be reached."""
        ...


class Shown(Struct, frozen=True, kw_only=True, rename="camel"):
    """A part of an answer, in camelCase."""


class ModelShown(Shown, frozen=True):
    """What the user said of the model behind a tunnel."""

    name: str
    capabilities: tuple[str, ...]


class ProblemShown(Shown, frozen=True):
    """What is wrong with an agent's identity. Times are Unix seconds."""

    code: Annotated[str, Meta(description="`agent_locked`, `identity_shared` or `old_key_used`")]
    message: Annotated[str, Meta(description="the cause, and what to do")]
    since: int
    hosts: Annotated[tuple[str, ...], Meta(description="what the hosts concerned call themselves")]


class AgentShown(Shown, frozen=True):
    """One agent of a tunnel. Times are Unix seconds."""

    agent_id: str
    hostname: str
    agent_version: str
    key_fingerprint: Annotated[
        str, Meta(description="of its end-to-end key; `byoai-agent status` shows the same")
    ]
    enrolled_at: int
    online: bool
    relays: tuple[str, ...]
    token_age_s: Annotated[int, Meta(description="seconds since it got its newest token")]
    token_expires_at: int
    certificate_expires_at: int
    state: Annotated[
        str,
        Meta(
            description="`active`, or `locked` after an old key of it was used again: "
            "POST …/agents/{agentId}/unlock lets it go on"
        ),
    ]
    problem: ProblemShown | None


class OfflineShown(Shown, frozen=True):
    """Why no agent of a tunnel can be reached."""

    code: Annotated[str, Meta(description="the code of the error that requests get")]
    message: Annotated[str, Meta(description="the cause, and what to do")]
    since: Annotated[int | None, Meta(description="when the last agent left, if that is known")]
    reason: Annotated[GoneReason | None, Meta(description="why it left, if that is known")]
    retry_after_s: int


class TunnelShown(Shown, frozen=True):
    """A tunnel and how it is now."""

    tunnel_id: str
    state: Annotated[str, Meta(description="`active`, or `locked` when all of its agents are")]
    model_info: ModelShown
    created_at: int
    online: bool
    offline: Annotated[OfflineShown | None, Meta(description="why not online; null while it is")]
    relays: tuple[str, ...]
    models: tuple[str, ...]
    health: Annotated[UpstreamHealth, Meta(description="the best of what its agents report")]
    round_trip_ms: Annotated[
        float | None, Meta(description="of the nearest agent's link to its relay")
    ]
    in_flight: int
    queued: int
    capacity: int
    needs_attention: Annotated[
        tuple[str, ...],
        Meta(
            description="what will end its connection soon unless an operator acts, such as a "
            "relay whose clock is wrong"
        ),
    ]
    agents: tuple[AgentShown, ...]


_BEST_FIRST = (
    UpstreamHealth.HEALTHY,
    UpstreamHealth.DEGRADED,
    UpstreamHealth.UNKNOWN,
    UpstreamHealth.DOWN,
)


def show_tunnel(
    tunnel: Tunnel,
    agents: Sequence[Agent],
    directory: PresenceDirectory,
    now: float,
) -> TunnelShown:
    """Put together what is known of a tunnel."""
    known = {agent.agent_id for agent in agents}
    presences = directory.agents_of(tunnel.tunnel_id)
    places = [place for place in presences if place[1].agent_id in known]
    # An agent holds a link to each of several relays and says the same on all of them.
    statuses = {presence.agent_id: presence.status for _, presence in places}.values()
    round_trips = [p.round_trip_us for _, p in places if p.round_trip_us is not None]
    return TunnelShown(
        tunnel_id=tunnel.tunnel_id,
        state=_state(bool(agents) and all(it.locked_at is not None for it in agents)),
        model_info=ModelShown(name=tunnel.model.name, capabilities=tunnel.model.capabilities),
        created_at=tunnel.created_at,
        online=bool(places),
        offline=None if places else _show_absence(absence_of(tunnel, agents, directory), now),
        relays=_relays(places),
        models=tuple(sorted({model for status in statuses for model in status.models})),
        health=min(
            (status.health for status in statuses),
            key=_BEST_FIRST.index,
            default=UpstreamHealth.UNKNOWN,
        ),
        round_trip_ms=min(round_trips) / 1000 if round_trips else None,
        in_flight=sum(status.in_flight for status in statuses),
        queued=sum(status.queued for status in statuses),
        capacity=sum(status.capacity for status in statuses),
        needs_attention=_attention(places),
        agents=tuple(_show_agent(agent, places, now) for agent in agents),
    )


def absence_of(tunnel: Tunnel, agents: Sequence[Agent], directory: PresenceDirectory) -> Absence:
    """Say why no agent of a tunnel can be reached, in the words that requests get."""
    if not agents:
        return never_joined()
    if all(it.locked_at is not None for it in agents):
        return all_locked()
    return directory.absence(tunnel.tunnel_id)


def _show_absence(absence: Absence, now: float) -> OfflineShown:
    return OfflineShown(
        code=absence.code,
        message=absence.message,
        since=None if absence.left_s is None else int(now - absence.left_s),
        reason=absence.reason,
        retry_after_s=int(absence.retry_after_s),
    )


def _show_agent(agent: Agent, places: Sequence[tuple[str, Presence]], now: float) -> AgentShown:
    own = [place for place in places if place[1].agent_id == agent.agent_id]
    problem = problem_of(agent, now)
    return AgentShown(
        agent_id=agent.agent_id,
        hostname=agent.hostname,
        agent_version=agent.agent_version,
        key_fingerprint=fingerprint(agent.end_to_end_pem),
        enrolled_at=agent.enrolled_at,
        online=bool(own),
        relays=_relays(own),
        token_age_s=max(0, int(now) - agent.token_issued_at),
        token_expires_at=agent.token_expires_at,
        certificate_expires_at=agent.certificate_expires_at,
        state=_state(agent.locked_at is not None),
        problem=None if problem is None else _show_problem(problem),
    )


def _state(is_locked: bool) -> str:  # noqa: FBT001 -- the state is made of nothing else
    return "locked" if is_locked else "active"


def _show_problem(problem: Problem) -> ProblemShown:
    return ProblemShown(
        code=problem.code, message=problem.message, since=problem.since, hosts=problem.hosts
    )


def _relays(places: Sequence[tuple[str, Presence]]) -> tuple[str, ...]:
    return tuple(sorted({relay for relay, _ in places}))


def _attention(places: Sequence[tuple[str, Presence]]) -> tuple[str, ...]:
    return tuple(
        f"the relay {relay} refused the newest token of agent {presence.agent_id}: "
        f"{presence.token_refusal}. Its connection ends when the older token expires; ask the "
        "operator to check that relay"
        for relay, presence in sorted(places, key=lambda place: (place[0], place[1].agent_id))
        if presence.token_refusal
    )


def fingerprint(certificate_pem: str) -> str:
    """What agent and settings page both show of an end-to-end certificate that is pinned."""
    key = x509.load_pem_x509_certificate(certificate_pem.encode()).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 -- only such are pinned
    return key_fingerprint(key)
