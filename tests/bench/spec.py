"""What the load generator is asked to do, and what it answers."""

import msgspec


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement against one address."""

    mode: str
    """`tiny`, `first_token`, `paced`, `burst`, `upload` or `stalled`."""
    port: int
    headers: dict[str, str]
    processes: dict[str, list[int]]
    """Whose CPU and memory is sampled: name → process ids."""
    upstream_pid: int
    cpus: list[int] = []
    connections: int = 1
    seconds: float = 4.0
    count: int = 0
    """Requests (`first_token`) or chunks per stream (`burst`)."""
    upload_bytes: int = 0
    with_stall_and_upload: bool = False


class Result(msgspec.Struct, kw_only=True):
    """One measurement: `count` units in `seconds`, with what each process spent on them."""

    count: int
    seconds: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    cpu_s: dict[str, float] = {}
    rss_before: dict[str, int] = {}
    rss_after: dict[str, int] = {}
    own_cpu_s: float = 0.0
    """Of the load generator and the upstream."""
    other_cpu_s: float = 0.0
    """Of everything else on the machine: it should be next to nothing."""
    side_bytes: int = 0
    """Uploaded beside the paced streams."""

    @property
    def rate(self) -> float:
        return self.count / self.seconds

    def cpu_us(self, process: str) -> float:
        """CPU microseconds per unit."""
        return self.cpu_s[process] / self.count * 1e6

    def rss_growth(self, process: str) -> int:
        return self.rss_after[process] - self.rss_before[process]


def percentile_ms(samples_ns: list[int], share: float) -> float:
    """The value below which `share` of the samples lie, in milliseconds."""
    ordered = sorted(samples_ns)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e6
