"""What is wrong with the identity of an agent, and what its owner can do about it. Pure."""

from dataclasses import dataclass
from typing import Final

from byoai_gateway.agent_instances import Instance, shared_since
from byoai_gateway.tunnel_rows import Agent

_SHOWN_S: Final = 86_400
"""How long an old key that was refused is shown."""
AGENT_LOCKED: Final = "agent_locked"
IDENTITY_SHARED: Final = "identity_shared"
OLD_KEY_USED: Final = "old_key_used"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong; the message gives the cause and the advice. Unix seconds."""

    code: str
    message: str
    since: int
    hosts: tuple[str, ...]
    """What the hosts concerned call themselves."""


def problem_of(agent: Agent, now: float) -> Problem | None:
    """Return the gravest problem of an agent's identity, or None."""
    if agent.locked_at is not None:
        return _locked(agent, agent.locked_at)
    if len(agent.runs) > 1:
        return _shared(agent.runs)
    used_at = agent.old_key_used_at
    if used_at is not None and used_at > now - _SHOWN_S:
        return _old_key(agent, used_at)
    return None


def _locked(agent: Agent, since: int) -> Problem:
    message = (
        f"an old key of this agent was used again by {_host(agent.old_key_host)}, so two hosts "
        "have its state, or one was restored from a backup; unlock the agent if it still runs on "
        "the right host, or join that host again with a new code "
        "(byoai-agent join CODE --replace) and remove this agent if it is still listed then"
    )
    return Problem(AGENT_LOCKED, message, since, _known(agent.old_key_host))


def _shared(runs: tuple[Instance, ...]) -> Problem:
    hosts = tuple(sorted({it.hostname for it in runs}))
    names = " and ".join(map(_host, hosts))
    if len(hosts) == 1:
        names = f"two hosts named {runs[0].hostname!r}"
    message = (
        f"{names} run with the same state, as a cloned machine does; stop the agent on one of "
        "them and join it with a new code (byoai-agent join CODE --replace)"
    )
    return Problem(IDENTITY_SHARED, message, shared_since(runs), hosts)


def _old_key(agent: Agent, since: int) -> Problem:
    message = (
        f"{_host(agent.old_key_host)} used an old copy of this agent's state and was refused; "
        "join that host with a new code if it is yours; if it is not, remove this agent and join "
        "its host again"
    )
    return Problem(OLD_KEY_USED, message, since, _known(agent.old_key_host))


def _host(name: str | None) -> str:
    return f"host {name!r}" if name else "an unnamed host"


def _known(name: str | None) -> tuple[str, ...]:
    return (name,) if name else ()
