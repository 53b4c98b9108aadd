"""What ops see of a relay: health, readiness, metrics and status, over plain HTTP."""

from collections.abc import Iterable

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from byoai_relay.connection_guard import LinkGuards
from byoai_relay.relay import Relay
from byoai_shared.ops import MakePage, Page, ops_pages


class RelayCollector(Collector):
    """Reads the relay's counters when it is asked; nothing is counted twice."""

    def __init__(self, relay: Relay, guards: LinkGuards) -> None:
        self._relay = relay
        self._guards = guards

    def collect(self) -> Iterable[Metric]:
        """Yield every metric, with its present value."""
        relay = self._relay
        counters = relay.switch.counters
        agents = len(list(relay.directory.agents()))
        gauges = {
            "byoai_relay_links": ("Links that are up", relay.link_count),
            "byoai_relay_agents": (
                "Agents that can be reached",
                agents,
            ),
            "byoai_relay_buffered_bytes": (
                "Bytes waiting to leave",
                relay.switch.buffered_bytes,
            ),
            "byoai_relay_ready": (
                "1 when agents can be let in and reached",
                int(relay.is_ready),
            ),
            "byoai_relay_trust_revision": ("Revision of the trust in force", relay.trust.revision),
            "byoai_relay_denials": (
                "Tunnels and agents refused by name",
                relay.trust.denial_count,
            ),
        }
        totals = {
            "byoai_relay_links_accepted": ("Links taken", relay.links_accepted),
            "byoai_relay_streams_opened": ("Streams joined", counters.opened),
            "byoai_relay_streams_refused": ("Streams refused", counters.refused),
            "byoai_relay_streams_shed": ("Streams reset to save memory", counters.shed),
            "byoai_relay_early_resets": (
                "Streams reset by a gateway before the agent answered",
                counters.early_resets,
            ),
            "byoai_relay_streams_throttled": (
                "Streams refused or reset because their tunnel used up its share",
                counters.throttled,
            ),
            "byoai_relay_links_slowed": (
                "Times that an agent's link was read more slowly",
                relay.links_slowed,
            ),
            "byoai_relay_credit_held": (
                "Credits held back by congestion",
                counters.credit_held,
            ),
        }
        for name, (help_text, value) in gauges.items():
            yield GaugeMetricFamily(name, help_text, value=value)
        for name, (help_text, value) in totals.items():
            yield CounterMetricFamily(name, help_text, value=value)
        resets = CounterMetricFamily("byoai_relay_resets", "Streams reset", labels=["code"])
        for code, count in counters.resets.items():
            resets.add_metric([code.name.lower()], count)
        yield resets
        refused = CounterMetricFamily(
            "byoai_relay_tokens_refused",
            "Tunnel tokens refused; not_yet_valid says that this relay's clock is behind",
            labels=["fault"],
        )
        for fault, count in relay.tokens_refused.items():
            refused.add_metric([fault], count)
        yield refused
        yield from _connections(self._guards)


class RelayStatus(msgspec.Struct, frozen=True, rename="camel"):
    """The answer of `/status`."""

    name: str
    software: str
    ready: bool
    draining: bool
    links: int
    gateways: list[str]
    agents: list["AgentStatus"]
    buffered_bytes: int
    trust_revision: int


class AgentStatus(msgspec.Struct, frozen=True, rename="camel"):
    """One agent in it."""

    tunnel_id: str
    agent_id: str
    epoch: int
    streams: int
    health: str
    round_trip_us: int | None
    accepted_until: int
    token_refusal: str
    """Why its newest token was refused, when its link goes on with an older one."""


def relay_status(relay: Relay) -> RelayStatus:
    """Describe the relay as it is now."""
    agents: list[AgentStatus] = []
    for entry in relay.directory.agents():
        round_trip_s = entry.port.round_trip_s
        agents.append(
            AgentStatus(
                tunnel_id=entry.tunnel_id,
                agent_id=entry.agent_id,
                epoch=entry.epoch,
                streams=len(entry.port.legs),
                health=entry.status.health,
                round_trip_us=None if round_trip_s is None else round(round_trip_s * 1e6),
                accepted_until=entry.accepted_until,
                token_refusal=entry.token_refusal,
            )
        )
    return RelayStatus(
        name=relay.hello.node,
        software=relay.hello.software,
        ready=relay.is_ready,
        draining=relay.is_draining,
        links=relay.link_count,
        gateways=[port.peer.node for port in relay.directory.gateways() if port.peer],
        agents=agents,
        buffered_bytes=relay.switch.buffered_bytes,
        trust_revision=relay.trust.revision,
    )


def _connections(guards: LinkGuards) -> Iterable[Metric]:
    labels = ["listener"]
    opened = GaugeMetricFamily(
        "byoai_relay_connections", "Open connections, links among them", labels=labels
    )
    closed = CounterMetricFamily(
        "byoai_relay_connections_closed",
        "Connections whose peers had not proved who they are, closed for new ones",
        labels=labels,
    )
    refused = CounterMetricFamily(
        "byoai_relay_connections_refused",
        "Connections and links that were refused",
        labels=[*labels, "reason"],
    )
    for name, guard in (("agents", guards.agents), ("gateways", guards.gateways)):
        opened.add_metric([name], len(guard.room))
        closed.add_metric([name], guard.room.closed)
        refused.add_metric([name, "rate"], guard.rate.refused)
        refused.add_metric([name, "room"], guard.room.refused)
    return opened, closed, refused


def relay_pages(relay: Relay, guards: LinkGuards) -> dict[str, MakePage]:
    """Return what every program shows, and `/status`."""
    registry = CollectorRegistry()
    registry.register(RelayCollector(relay, guards))

    async def why_not_ready() -> str:
        return "" if relay.is_ready else _why_not(relay)

    async def status() -> Page:
        return Page(msgspec.json.encode(relay_status(relay)), "application/json")

    def metrics() -> Page:
        return Page(generate_latest(registry), CONTENT_TYPE_LATEST)

    return {**ops_pages(why_not_ready, metrics), "/status": status}


def _why_not(relay: Relay) -> str:
    if relay.is_draining:
        return "draining"
    if not relay.trust.is_known:
        return "no gateway has told us yet which keys to trust"
    return "no gateway is connected"
