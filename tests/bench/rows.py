"""What is measured, what each row of the table shows, and what is to be reached."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .spec import Result

KIB = 1024
MIB = 1024 * 1024
MB = 1_000_000

MEASUREMENTS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"mode": "tiny", "connections": 64, "seconds": 4.0},
    "first_token": {"mode": "first_token", "count": 200},
    "paced64": {"mode": "paced", "connections": 64, "seconds": 5.0},
    "paced256": {"mode": "paced", "connections": 256, "seconds": 5.0},
    "burst": {"mode": "burst", "connections": 8, "count": 50_048},
    "upload": {"mode": "upload", "upload_bytes": 200 * MB},
    "disturbed": {
        "mode": "paced",
        "connections": 32,
        "seconds": 6.0,
        "with_stall_and_upload": True,
        "upload_bytes": 50 * MB,
    },
    "stalled": {"mode": "stalled", "connections": 200, "seconds": 6.0},
}
"""Every measurement of a chain: its name and what the load generator is told."""

LINKS = "links"
"""The measurement of idle links, which concerns our relay alone."""

TITLES: Mapping[str, str] = {
    "tiny": "tiny posts, 64 connections",
    "first_token": "time to first token, one at a time",
    "paced64": "64 streams at 50 chunks/s",
    "paced256": "256 streams at 50 chunks/s",
    "burst": "8 streams as fast as they come",
    "upload": "one upload of 200 MB",
    "disturbed": "32 paced streams beside a stalled reader and 50 MB uploads",
    "stalled": "200 stalled readers",
    LINKS: "2,000 idle agent links",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a value of one measurement, and what ours is to reach."""

    measurement: str
    label: str
    value: Callable[[Result], float]
    target: float | None = None
    more_is_better: bool = False
    is_added: bool = False
    """The value is what the chain adds to the direct way."""
    process: str | None = None
    """The row only concerns chains with this process."""

    def is_met(self, value: float) -> bool:
        """Whether a value reaches the target; True when there is none."""
        if self.target is None:
            return True
        reaches = operator.ge if self.more_is_better else operator.le
        return bool(reaches(value, self.target))


PROCESSES = ("gateway", "relay", "agent")


def _total_cpu(process: str) -> Callable[[Result], float]:
    return lambda result: result.cpu_s[process]


def _rss_growth(process: str) -> Callable[[Result], float]:
    return lambda result: result.rss_growth(process) / MB


def _cpu_rows(measurement: str, unit: str, **targets: float | None) -> list[Row]:
    """CPU per unit, one row for each process."""

    def value_for(process: str) -> Callable[[Result], float]:
        return lambda result: result.cpu_us(process)

    return [
        Row(
            measurement,
            f"CPU µs per {unit}: {process}",
            value_for(process),
            target,
            process=process,
        )
        for process, target in targets.items()
    ]


def _p50(result: Result) -> float:
    return result.p50_ms


def _p99(result: Result) -> float:
    return result.p99_ms


def _rate(result: Result) -> float:
    return result.rate


def _paced_rows(measurement: str, added_ms: float | None, **cpu_us: float | None) -> list[Row]:
    return [
        Row(measurement, "chunks/s", _rate, more_is_better=True),
        Row(measurement, "chunk lag p50, ms", _p50),
        Row(measurement, "chunk lag p99, ms", _p99),
        Row(measurement, "added chunk lag p50, ms", _p50, added_ms, is_added=True),
        *_cpu_rows(measurement, "chunk", **cpu_us),
    ]


TUNNEL_ROWS: tuple[Row, ...] = (
    Row("tiny", "requests/s", _rate, 5000, more_is_better=True),
    Row("tiny", "p50, ms", _p50),
    Row("tiny", "p99, ms", _p99),
    *_cpu_rows("tiny", "request", gateway=None, relay=None, agent=None),
    Row("first_token", "p50, ms", _p50),
    Row("first_token", "p99, ms", _p99),
    Row("first_token", "added p50, ms", _p50, 1.5, is_added=True),
    *_paced_rows("paced64", 0.7, gateway=50, relay=30, agent=50),
    *_paced_rows("paced256", 0.7, gateway=40, relay=12, agent=40),
    Row("burst", "chunks/s", _rate, more_is_better=True),
    *_cpu_rows("burst", "chunk", gateway=None, relay=2, agent=None),
    Row("upload", "MB/s", lambda result: result.rate / MB, 120, more_is_better=True),
    *(Row("upload", f"CPU s: {name}", _total_cpu(name), process=name) for name in PROCESSES),
    Row("disturbed", "chunk lag p50, ms", _p50),
    Row("disturbed", "chunk lag p99, ms", _p99, 8),
    Row(
        "disturbed",
        "uploaded beside them, MB/s",
        lambda result: result.side_bytes / MB / result.seconds,
        more_is_better=True,
    ),
    Row("stalled", "RSS growth, MB: gateway", _rss_growth("gateway"), process="gateway"),
    Row("stalled", "RSS growth, MB: relay", _rss_growth("relay"), 10, process="relay"),
    Row("stalled", "RSS growth, MB: agent", _rss_growth("agent"), process="agent"),
    Row(
        LINKS,
        "relay RSS per link, KiB",
        lambda result: result.rss_growth("relay") / result.count / KIB,
        70,
    ),
    Row(LINKS, "links accepted/s", _rate, more_is_better=True),
    Row(LINKS, "CPU ms per link accepted: relay", lambda result: result.cpu_us("relay") / 1000),
)

ROUTER_ROWS: tuple[Row, ...] = (
    Row("tiny", "requests/s", _rate, more_is_better=True),
    Row("tiny", "p50, ms", _p50),
    Row("tiny", "p99, ms", _p99),
    *_cpu_rows("tiny", "request", gateway=150),
    Row("first_token", "p50, ms", _p50),
    Row("first_token", "p99, ms", _p99),
    Row("first_token", "added p50, ms", _p50, 1, is_added=True),
    *_paced_rows("paced64", None, gateway=30),
    *_paced_rows("paced256", None, gateway=30),
)
