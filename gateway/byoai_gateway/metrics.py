"""The gateway's numbers, for Prometheus; read where they are kept when they are asked for."""

from collections import Counter
from collections.abc import Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from byoai_gateway.availability import Availability
from byoai_gateway.data_path import DataPath
from byoai_gateway.shared_store import SharedStore
from byoai_gateway.tally import FIRST_TOKEN_S, AttemptTally
from byoai_gateway.usage import UsageLog
from byoai_shared.listener import ConnectionGuard
from byoai_shared.ops import Page


class GatewayCollector(Collector):
    """Requests, attempts, links and tunnels as they are now."""

    def __init__(self, data_path: DataPath) -> None:
        self._requests = data_path.requests
        self._links = data_path.links
        self._tunnels = data_path.ways.tunnels
        self._attempts = data_path.serving.router.attempts
        self._usage = data_path.serving.usage
        self._shared_store = data_path.serving.limits.shared
        self._availability = data_path.availability
        self._guard = data_path.guard

    def collect(self) -> Iterable[Metric]:
        """Yield every metric, with its present value."""
        yield from self._data_path()
        yield from _attempts(self._attempts)
        yield from _usage(self._usage)
        yield from _stores(self._availability, self._shared_store)
        yield from _connections(self._guard)

    def _data_path(self) -> Iterable[Metric]:
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
        clocks = GaugeMetricFamily(
            "byoai_gateway_relay_clock_difference_seconds",
            "By how much a relay's clock was ahead of the gateway's when it last gave its time",
            labels=["relay"],
        )
        for address, difference_s in sorted(links.clocks.differences_s.items()):
            clocks.add_metric([address], difference_s)
        yield clocks
        yield _counted(
            "relay_tokens_refused",
            "Renewed tokens that a relay refused on a link that goes on",
            "relay",
            links.tokens_refused,
        )
        yield _counted("link_dials", "Dials to relays by their end", "outcome", links.dials)
        yield _counted(
            "stream_dials",
            "Streams and their end-to-end sessions by their end",
            "outcome",
            self._tunnels.dials,
        )


def _attempts(attempts: AttemptTally) -> Iterable[Metric]:
    ends = CounterMetricFamily(
        "byoai_gateway_attempts",
        "Attempts at providers by their end",
        labels=["provider", "outcome"],
    )
    for labels, count in sorted(attempts.outcomes.items()):
        ends.add_metric(labels, count)
    yield ends
    yield _counted(
        "fallbacks", "Requests that went on to the default provider", "reason", attempts.fallbacks
    )
    first = HistogramMetricFamily(
        "byoai_gateway_first_token_seconds",
        "From asking a provider to the beginning of its answer",
        labels=["provider"],
    )
    bounds = [*map(str, FIRST_TOKEN_S), "+Inf"]
    for provider, histogram in sorted(attempts.first_token.items()):
        buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
        first.add_metric([provider], buckets, histogram.sum_s)
    yield first


def _usage(usage: UsageLog) -> Iterable[Metric]:
    yield GaugeMetricFamily(
        "byoai_gateway_usage_records_waiting",
        "Records of requests that wait for the database",
        value=usage.waiting,
    )
    yield CounterMetricFamily(
        "byoai_gateway_usage_records_lost",
        "Records of requests that found no room, or that the database would not take",
        value=usage.lost,
    )


def _stores(availability: Availability, shared_store: SharedStore) -> Iterable[Metric]:
    states = {
        "database_up": ("Whether the database answers", not availability.is_suspect),
        "database_writable": (
            "Whether the database takes writes, as far as is known",
            availability.write_fault is None,
        ),
        "limits_store_up": ("Whether the store of the limits counts", not shared_store.is_away),
    }
    for name, (text, is_up) in states.items():
        yield GaugeMetricFamily(f"byoai_gateway_{name}", text, value=int(is_up))
    yield CounterMetricFamily(
        "byoai_gateway_stale_answers",
        "Older answers used because the database did not answer",
        value=availability.stale_answers,
    )
    yield CounterMetricFamily(
        "byoai_gateway_limits_counted_alone",
        "Requests, changes, tests and assertions counted in memory because the store was away",
        value=shared_store.answered_alone,
    )


def _connections(guard: ConnectionGuard) -> Iterable[Metric]:
    yield GaugeMetricFamily(
        "byoai_gateway_connections", "Open connections to the public port", value=len(guard.room)
    )
    yield CounterMetricFamily(
        "byoai_gateway_connections_closed",
        "Connections that waited for a request and were closed for new ones",
        value=guard.room.closed,
    )
    refused = Counter(rate=guard.rate.refused, room=guard.room.refused)
    yield _counted("connections_refused", "Connections that were refused", "reason", refused)


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
