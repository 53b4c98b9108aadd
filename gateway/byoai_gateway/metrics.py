"""The gateway's numbers, for Prometheus; read where they are kept when they are asked for."""

from collections import Counter
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from byoai_gateway.relay_links import RelayLinks
from byoai_gateway.tally import RequestTally
from byoai_gateway.tunnel_client import TunnelClient
from byoai_shared.ops import Page


class GatewayCollector(Collector):
    """Requests, links and tunnels as they are now."""

    def __init__(self, requests: RequestTally, links: RelayLinks, tunnels: TunnelClient) -> None:
        self._requests = requests
        self._links = links
        self._tunnels = tunnels

    def collect(self) -> Iterable[Metric]:
        """Yield every metric, with its present value."""
        links = self._links
        gauges = {
            "requests_in_flight": ("Requests under /v1 being answered", self._requests.in_flight),
            "relays": ("Relays there should be links to", len(links.addresses)),
            "relay_links": ("Links to relays that may be used", len(links.connected)),
            "tunnels_online": ("Tunnels that can be reached", links.presence.tunnel_count),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"byoai_gateway_{name}", text, value=value)
        yield _counted(
            "requests", "Requests under /v1 by their end", "outcome", self._requests.outcomes
        )
        yield _counted("link_dials", "Dials to relays by their end", "outcome", links.dials)
        yield _counted(
            "stream_dials",
            "Streams and their end-to-end sessions by their end",
            "outcome",
            self._tunnels.dials,
        )


def metrics_page(collector: Collector) -> Page:
    """Write a collector's metrics down."""
    registry = CollectorRegistry()
    registry.register(collector)
    return Page(generate_latest(registry), CONTENT_TYPE_LATEST)


def _counted(name: str, text: str, label: str, counts: Counter[str]) -> Metric:
    metric = CounterMetricFamily(f"byoai_gateway_{name}", text, labels=[label])
    for value, count in sorted(counts.items()):
        metric.add_metric([value], count)
    return metric
