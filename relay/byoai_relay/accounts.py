"""What a tunnel has used up of the relay: early resets and work, over all of its links.

A gateway's link carries the streams of all users, so what one tenant causes is charged to that
tenant's tunnel and to nothing else. An account outlives the links that charge it: a peer gains
nothing by connecting again.

Pure: time is an argument.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from byoai_shared.protocol.budget import TokenBucket

MAX_REMEMBERED: Final = 10_000
"""Accounts that are kept after the last link of their tunnel has gone, the latest ones."""
MAX_WAIT_S: Final = 20.0
"""The longest wait for work that was done already: shorter than a link may be silent."""
WORK_BURST_S: Final = 2.0
"""How many seconds' worth of work may come at once."""


@dataclass(frozen=True, slots=True)
class AccountLimits:
    """What one tunnel may use up."""

    early_resets_burst: float
    early_resets_per_s: float
    refuse_s: float
    """How long new streams are refused after an early reset that the account did not cover."""
    work_per_s: float


class TunnelAccount:
    """The account of one tunnel."""

    __slots__ = (
        "__weakref__",
        "_early_resets",
        "_limits",
        "_refused_until",
        "_work",
        "_work_updated",
    )

    def __init__(self, limits: AccountLimits, *, now: float) -> None:
        self._limits = limits
        self._early_resets = TokenBucket(
            limits.early_resets_burst, limits.early_resets_per_s, now=now
        )
        self._refused_until = now
        self._work = 0.0
        self._work_updated = now

    def charge_early_reset(self, now: float) -> None:
        """Count a stream that was reset before an answer; one too many has new ones refused."""
        if not self._early_resets.spend(1, now):
            self._refused_until = now + self._limits.refuse_s

    def refuses_streams(self, now: float) -> bool:
        """Whether new streams of the tunnel are refused at present."""
        return now < self._refused_until

    def charge_work(self, units: float, now: float) -> float:
        """Count work that was done; return for how many seconds there should be no more of it."""
        rate = self._limits.work_per_s
        elapsed = max(0.0, now - self._work_updated)
        most = (WORK_BURST_S + MAX_WAIT_S) * rate
        self._work = min(max(0.0, self._work - elapsed * rate) + units, most)
        self._work_updated = now
        return max(0.0, self._work / rate - WORK_BURST_S)


class Accounts:
    """The accounts of all tunnels that are linked, or were a short time ago."""

    def __init__(self, limits: AccountLimits) -> None:
        self._limits = limits
        self._known: WeakValueDictionary[str, TunnelAccount] = WeakValueDictionary()
        self._remembered: OrderedDict[str, TunnelAccount] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def known(self, tunnel_id: str) -> TunnelAccount | None:
        """Return the account of a tunnel if anything was ever charged to it."""
        return self._known.get(tunnel_id)

    def of(self, tunnel_id: str, now: float) -> TunnelAccount:
        """Return the account of a tunnel; the caller keeps it for as long as it charges it."""
        account = self._known.get(tunnel_id)
        if account is None:
            account = self._known[tunnel_id] = TunnelAccount(self._limits, now=now)
        self._remembered[tunnel_id] = account
        self._remembered.move_to_end(tunnel_id)
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return account
