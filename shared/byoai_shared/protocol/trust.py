"""What relays believe, as it travels: changes since a revision, and a digest of the whole.

A gateway sends TRUST: the keys that sign tunnel tokens, complete, and the denials that the relay
lacks. Both sides keep the denials in a `DenialSet` and compare a digest of everything; a relay
whose digest differs asks for the whole with TRUST_HELD. A denial ends by itself: gateways tell
relays which moment counts as now, so that both forget the same ones, whatever their clocks.

A set of denials is bounded. Where there are too many, the oldest are replaced by one rule that
covers them: tokens issued up to the newest of the dropped ones are refused. A revoked tunnel gets
no newer token; every other agent fetches one.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec

from byoai_shared.protocol.control import Control, Name, UnixTime
from byoai_shared.protocol.frames import MAX_PAYLOAD_BYTES

MAX_DENIALS: Final = 100_000
"""Denials that gateways send one by one."""
MAX_HELD_DENIALS: Final = 2 * MAX_DENIALS
"""Denials that one set holds: some 50 MB. Reached only between two tidyings, or under attack."""
MAX_REVISION: Final = 2**53
_PART_ROOM_BYTES: Final = MAX_PAYLOAD_BYTES - 6 * 1024
"""For rows; the rest is for the other fields, names of 255 characters included."""
_MODULUS: Final = 2**128

Revision = Annotated[int, msgspec.Meta(ge=0, le=MAX_REVISION)]
Digest = Annotated[str, msgspec.Meta(max_length=64)]
Subject = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
"""A tunnel's id, which covers all of its agents, or what `agent_subject` returns."""


def agent_subject(tunnel_id: str, agent_id: str) -> str:
    """Name one agent of a tunnel."""
    return f"{tunnel_id}/{agent_id}"


class Denial(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A tunnel or an agent whose tokens and links are refused."""

    subject: Subject
    denied_at: UnixTime
    until: UnixTime
    """When the last of its tokens has expired; 0 withdraws the denial."""


class Trust(Control, frozen=True):
    """What a relay is to believe from `revision` on.

    Lists that are short by nature (the keys) come complete each time. Only denials come as
    changes, since `base`; with base 0 they are complete, too. What does not fit one frame comes
    in parts of the same revision, numbered from 0; all but the last have `more` set, and the keys
    of all parts together are the complete list.
    """

    revision: Revision
    """Rises with every change; an older one never replaces a newer one."""
    base: Revision
    digest: Digest
    """Of everything that is in force once this is applied: see `trust_digest`."""
    issuer: Name
    audience: Name
    keys: tuple[dict[str, str], ...] = ()
    """Public token keys (JWK, RFC 7517), each with its `kid`."""
    denials: tuple[Denial, ...] = ()
    expired_before: UnixTime = 0
    """Denials that ended before this moment are forgotten."""
    issued_after: UnixTime = 0
    """Tokens issued up to this moment are refused, whomever they are for."""
    part: Annotated[int, msgspec.Meta(ge=0)] = 0
    more: bool = False


MAX_ADVANCE_MS: Final = 86_400_000
"""How far a revision may be ahead of the clock of a relay that takes it."""
MAX_OVERTAKEN_MS: Final = MAX_ADVANCE_MS - 300_000
"""How far a relay's revision may be ahead of the clock of a gateway that overtakes it: less, so
that no lie leads a gateway to a revision that relays refuse, unless clocks differ by minutes."""


class TrustHeld(Control, frozen=True):
    """Relay to gateway: what it believes; after the handshake, and whenever that changes.

    A relay repeats it with its time in it. Such a report is about the clock alone.
    """

    revision: Revision = 0
    """0 before any gateway has sent TRUST."""
    digest: Digest = ""
    wanted: bool = False
    """Whether the relay asks for the whole, because a change did not lead to its digest."""
    unix_time: UnixTime = 0
    """The relay's clock, in a report about that; else 0."""


class DenialSet:
    """Denials by subject, and a digest of them that is kept up as they change.

    The digest finds sets that have drifted apart. It is no protection against forged denials:
    those who may send any are authenticated by the link.
    """

    def __init__(self, limit: int = MAX_HELD_DENIALS) -> None:
        self._limit = limit
        self._denials: dict[str, Denial] = {}
        self._sum = 0
        self._expired_before = 0
        self._told_issued_after = 0
        self._dropped_until = 0

    def __len__(self) -> int:
        """How many denials are held."""
        return len(self._denials)

    def __contains__(self, subject: str) -> bool:
        """Whether a tunnel or an agent is denied by name."""
        return subject in self._denials

    @property
    def issued_after(self) -> int:
        """Tokens issued up to this moment are refused."""
        return max(self._told_issued_after, self._dropped_until)

    @property
    def state(self) -> tuple[int, int, str]:
        """What the digest is made of; equal exactly when the sets were told the same."""
        return self._expired_before, self._told_issued_after, f"{self._sum:x}"

    def __iter__(self) -> Iterator[Denial]:
        """All denials."""
        return iter(self._denials.values())

    def apply(self, denials: Iterable[Denial], *, expired_before: int, issued_after: int) -> None:
        """Add or replace denials, then forget those that ended or are covered."""
        is_sweep_due = (expired_before, issued_after) != (
            self._expired_before,
            self._told_issued_after,
        )
        self._expired_before, self._told_issued_after = expired_before, issued_after
        for denial in denials:
            self._remove(denial.subject)
            if not self._is_over(denial):
                self._denials[denial.subject] = denial
                self._sum = (self._sum + _number(denial)) % _MODULUS
        if is_sweep_due:
            for denial in [it for it in self._denials.values() if self._is_over(it)]:
                self._remove(denial.subject)
        if len(self._denials) > self._limit:
            self._drop_oldest()

    def _is_over(self, denial: Denial) -> bool:
        is_withdrawn = denial.until == 0
        is_covered = denial.denied_at <= self._told_issued_after
        return is_withdrawn or is_covered or denial.until < self._expired_before

    def _remove(self, subject: str) -> None:
        denial = self._denials.pop(subject, None)
        if denial is not None:
            self._sum = (self._sum - _number(denial)) % _MODULUS

    def _drop_oldest(self) -> None:
        """Replace the oldest tenth, at least, by the rule that covers them.

        The digest goes on counting them: it tells what was sent, not what is held.
        """
        by_age = sorted(self._denials.values(), key=lambda it: it.denied_at)
        kept = self._limit - self._limit // 10
        self._dropped_until = max(self._dropped_until, by_age[len(by_age) - kept - 1].denied_at)
        for denial in by_age:
            if denial.denied_at <= self._dropped_until:
                del self._denials[denial.subject]


def _number(denial: Denial) -> int:
    text = f"{denial.subject} {denial.denied_at} {denial.until}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")


def trust_digest(
    issuer: str, audience: str, keys: Sequence[Mapping[str, str]], denials: DenialSet
) -> str:
    """Sum up everything that a relay believes; the order of the keys does not matter."""
    by_id = sorted((sorted(key.items()) for key in keys), key=repr)
    whole = msgspec.json.encode([issuer, audience, by_id, denials.state])
    return hashlib.sha256(whole).hexdigest()


def split_trust(trust: Trust) -> list[Trust]:
    """Cut TRUST into parts that each fit a frame, in the order in which they must be sent."""
    rows: list[tuple[str, Any]] = [
        *(("keys", key) for key in trust.keys),
        *(("denials", denial) for denial in trust.denials),
    ]
    chunks: list[list[tuple[str, Any]]] = [[]]
    room = _PART_ROOM_BYTES
    for row in rows:
        size = len(msgspec.json.encode(row[1])) + 1
        if size > room and chunks[-1]:
            chunks.append([])
            room = _PART_ROOM_BYTES
        chunks[-1].append(row)
        room -= size
    return [_part(trust, number, chunks) for number in range(len(chunks))]


def _part(trust: Trust, number: int, chunks: Sequence[Sequence[tuple[str, Any]]]) -> Trust:
    def column(name: str) -> tuple[Any, ...]:
        return tuple(value for field, value in chunks[number] if field == name)

    return msgspec.structs.replace(
        trust,
        keys=column("keys"),
        denials=column("denials"),
        part=number,
        more=number < len(chunks) - 1,
    )
