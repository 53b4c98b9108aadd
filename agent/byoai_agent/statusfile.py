"""What a running agent writes about itself for `byoai-agent status`: facts, no secrets."""

import msgspec


class LinkReport(msgspec.Struct, frozen=True, kw_only=True):
    """One link to a relay."""

    relay: str
    is_up: bool
    fault: str = ""
    retry_at: float | None = None
    round_trip_ms: float | None = None


class UpstreamReport(msgspec.Struct, frozen=True, kw_only=True):
    """One model server."""

    url: str
    is_up: bool
    fault: str = ""
    models: tuple[str, ...] = ()


class AgentReport(msgspec.Struct, frozen=True, kw_only=True):
    """The agent as a whole; times in Unix seconds."""

    process: int
    is_running: bool
    written_at: float
    tunnel_id: str
    links: tuple[LinkReport, ...] = ()
    upstreams: tuple[UpstreamReport, ...] = ()
    in_flight: int = 0
    waiting: int = 0
    capacity: int = 0
    token_expires_at: int = 0
    certificate_expires_at: int = 0
    ended: str = ""
    """Why it cannot go on without a person, once that is so."""
    problems: tuple[str, ...] = ()
    """What a person should mend while it runs on."""

    @classmethod
    def empty(cls, tunnel_id: str) -> "AgentReport":
        """The report of an agent that has written none."""
        return cls(process=0, is_running=False, written_at=0.0, tunnel_id=tunnel_id)
