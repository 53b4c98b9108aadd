"""The relay's settings: a TOML file, `BYOAI_RELAY_*` environment variables, flags."""

from pathlib import Path
from typing import Annotated

import msgspec

from byoai_relay.port import SwitchLimits
from byoai_shared.connection_room import networks
from byoai_shared.log_settings import LogSettings

_MIB = 1024 * 1024


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the settings."""


def _field(description: str, unit: str = "") -> msgspec.Meta:
    return msgspec.Meta(description=description, extra={"unit": unit} if unit else None)


def _amount(description: str, unit: str) -> msgspec.Meta:
    """Describe a number of something; nothing works with less than none."""
    return msgspec.Meta(description=description, ge=0, extra={"unit": unit})


Host = Annotated[str, _field("address to listen on; all addresses when empty")]
Port = Annotated[
    int, msgspec.Meta(description="TCP port; 0 lets the kernel choose", ge=0, le=65535)
]


class AgentsListener(Section, frozen=True):
    """Where agents connect."""

    host: Host = ""
    port: Port = 7443


class GatewaysListener(Section, frozen=True):
    """Where gateways connect; keep it inside the operator's network."""

    host: Host = ""
    port: Port = 7444


class OpsListener(Section, frozen=True):
    """Where ops look: plain HTTP, loopback unless changed."""

    host: Host = "127.0.0.1"
    port: Port = 7480
    names: Annotated[
        tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=253)], ...],
        _field(
            "host names that requests may name, besides localhost, ops.host and IP addresses; "
            "any other is refused with 421"
        ),
    ] = ()


class IdentityFiles(Section, frozen=True):
    """Who this relay is and whom it trusts; read again when the certificate changes on disk."""

    certificate: Annotated[Path, _field("its certificate, PEM, leaf first")] = Path("relay.pem")
    key: Annotated[Path, _field("its private key, PEM")] = Path("relay-key.pem")
    agents_ca: Annotated[Path, _field("CA of agents' link certificates, PEM")] = Path(
        "agents-ca.pem"
    )
    services_ca: Annotated[Path, _field("CA of gateways' certificates, PEM")] = Path(
        "services-ca.pem"
    )


class Limits(Section, frozen=True):
    """What the relay bears before it says no."""

    streams_per_tunnel: Annotated[int, _amount("streams of one tunnel at once", "streams")] = 64
    opens_per_s: Annotated[float, _amount("new streams to one agent", "1/s")] = 100.0
    opens_burst: Annotated[float, _amount("new streams to one agent in a burst", "streams")] = 200.0
    early_resets_per_s: Annotated[
        float, _amount("streams of one tunnel reset before the agent answered", "1/s")
    ] = 5.0
    early_resets_burst: Annotated[
        float,
        _amount(
            "streams of one tunnel reset before the agent answered, in a burst; beyond it new "
            "streams of that tunnel are refused for 10 s",
            "streams",
        ),
    ] = 200.0
    frames_per_s: Annotated[
        float,
        msgspec.Meta(
            description="frames from the agents of one tunnel, for each stream that it may have; "
            "a small frame counts as 17, a report of models as one for each 16 bytes, to the relay "
            "and on to each gateway, and a link that sends more is read more slowly",
            ge=100,
            extra={"unit": "1/s"},
        ),
    ] = 1000.0
    link_high_bytes: Annotated[
        int, _amount("waiting bytes of a link above which credit is held back", "bytes")
    ] = _MIB
    link_low_bytes: Annotated[
        int, _amount("waiting bytes of a link below which credit flows again", "bytes")
    ] = _MIB // 4
    memory_bytes: Annotated[
        int,
        _field(
            "waiting bytes in all; above 80 % no new stream, above all the largest ends",
            "bytes",
        ),
    ] = 512 * _MIB
    connections_per_s: Annotated[
        float, _amount("new connections to each listener in all", "1/s")
    ] = 500.0
    connections_burst: Annotated[
        float, _amount("new connections to each listener in a burst", "connections")
    ] = 1000
    address_connections_per_s: Annotated[
        float, _amount("new connections to each listener from one address", "1/s")
    ] = 10.0
    address_connections_burst: Annotated[
        float,
        _amount("new connections to each listener from one address in a burst", "connections"),
    ] = 50
    connections: Annotated[
        int,
        msgspec.Meta(
            description="open connections to each listener in all, links among them; when there "
            "are so many, a new one closes the oldest of those whose peers have not proved who "
            "they are (gateways by a certificate, agents by a token)",
            ge=64,
            le=1_000_000,
            extra={"unit": "connections"},
        ),
    ] = 20_000
    address_connections: Annotated[
        int,
        msgspec.Meta(
            description="open connections to each listener from one address (IPv6: a /64 network; "
            "a /48 network may have four times as many) whose peers have not proved who they are; "
            "one more closes the oldest of them",
            ge=4,
            extra={"unit": "connections"},
        ),
    ] = 256
    address_links: Annotated[
        int,
        msgspec.Meta(
            description="links on each listener from one address (IPv6: a /64 network; a /48 "
            "network may have four times as many); one more is refused",
            ge=4,
            extra={"unit": "links"},
        ),
    ] = 1024
    trusted_proxies: Annotated[
        tuple[str, ...],
        _field(
            "networks (CIDR) of TCP load balancers in front of the listeners; the relay does not "
            "read the PROXY protocol, so their connections have no limits per address except "
            "proxy_connections"
        ),
    ] = ()
    proxy_connections: Annotated[
        int,
        msgspec.Meta(
            description="open connections from each address of trusted_proxies whose peers have "
            "not proved who they are",
            ge=4,
            extra={"unit": "connections"},
        ),
    ] = 2048

    def __post_init__(self) -> None:
        """Refuse networks that are none.

        Raises:
            ValueError: with a sentence that names the setting.
        """
        try:
            networks(self.trusted_proxies)
        except ValueError as error:
            raise ValueError(f"trusted_proxies: {error}; write 10.0.0.0/8") from error

    def for_switch(self) -> SwitchLimits:
        """The part that the switch enforces."""
        return SwitchLimits(
            streams_per_tunnel=self.streams_per_tunnel,
            opens_per_s=self.opens_per_s,
            opens_burst=self.opens_burst,
            early_resets_per_s=self.early_resets_per_s,
            early_resets_burst=self.early_resets_burst,
            frames_per_s=self.frames_per_s,
            link_high_bytes=self.link_high_bytes,
            link_low_bytes=self.link_low_bytes,
            memory_bytes=self.memory_bytes,
        )


class RelayConfig(Section, frozen=True):
    """Everything a relay can be told."""

    name: Annotated[str, _field("its name in logs; the certificate's when empty")] = ""
    drain_s: Annotated[float, _amount("how long streams may go on after SIGTERM", "s")] = 600.0
    token_grace_s: Annotated[
        float, _amount("how long streams may go on after their agent's token expired", "s")
    ] = 60.0
    agents: AgentsListener = AgentsListener()
    gateways: GatewaysListener = GatewaysListener()
    ops: OpsListener = OpsListener()
    identity: IdentityFiles = IdentityFiles()
    limits: Limits = Limits()
    log: LogSettings = LogSettings()
