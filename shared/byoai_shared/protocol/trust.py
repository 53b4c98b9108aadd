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
from itertools import chain
from typing import Annotated, Final

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
_SWEPT_PER_ROW: Final = 4
"""While there is no room: rows that come pay for the looks that free the dropped ones."""
SWEEP_ROWS: Final = 500
"""Rows to look at in one turn of an event loop: about a millisecond."""

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

    No call does work for all denials at once. A denial that ended, or that a rule covers, stops to
    count at once; its memory is freed by `sweep`, some rows at a time, which its owner calls until
    `is_swept`. Only then may the digest be compared: see `is_digest_known`.

    The digest finds sets that have drifted apart. It is no protection against forged denials:
    those who may send any are authenticated by the link.
    """

    def __init__(self, limit: int = MAX_HELD_DENIALS) -> None:
        self._limit = limit
        self._denials: dict[str, Denial] = {}
        # Not yet looked at since a rule changed; a subject is in one of the two at most.
        self._unswept: dict[str, Denial] = {}
        self._is_swept_again = False
        # How many denials there are of each moment: finds what to drop without sorting them all.
        self._made_at: dict[int, int] = {}
        self._count = 0
        self._sum = 0
        self._is_digest_known = True
        self._expired_before = 0
        self._told_issued_after = 0
        self._dropped_until = 0

    def __len__(self) -> int:
        """How many denials are held; those that ended count until they are swept."""
        return self._count

    def __contains__(self, subject: str) -> bool:
        """Whether a tunnel or an agent is denied by name."""
        denial = self._denials.get(subject) or self._unswept.get(subject)
        return denial is not None and not self.is_over(denial) and not self._is_dropped(denial)

    @property
    def issued_after(self) -> int:
        """Tokens issued up to this moment are refused."""
        return max(self._told_issued_after, self._dropped_until)

    @property
    def is_swept(self) -> bool:
        """Whether there is nothing for `sweep` to do."""
        return not self._unswept and not self._is_swept_again

    @property
    def is_digest_known(self) -> bool:
        """Whether `state` is that of the rules in force, and not of some rows of those before."""
        return self._is_digest_known

    @property
    def state(self) -> tuple[int, int, str]:
        """What the digest is made of; equal exactly when the sets were told the same.

        Raises:
            RuntimeError: it is not known before `sweep` is done.
        """
        if not self._is_digest_known:
            raise RuntimeError("a digest was asked of denials that are not swept yet")
        return self._expired_before, self._told_issued_after, f"{self._sum:x}"

    def apply(self, denials: Iterable[Denial], *, expired_before: int, issued_after: int) -> None:
        """Add or replace denials, and forget those that ended or are covered."""
        if (expired_before, issued_after) != (self._expired_before, self._told_issued_after):
            self._expired_before = expired_before
            self._told_issued_after = issued_after
            # A sweep that is under way is finished first, else none would ever be.
            self._is_swept_again = bool(self._denials)
            self._is_digest_known = self.is_swept
        count = 0
        for denial in denials:
            self._put(denial)
            count += 1
        if self._count > self._limit:
            self._drop_oldest()
        if len(self._denials) + len(self._unswept) > self._limit:
            self.sweep(count * _SWEPT_PER_ROW)

    def sweep(self, rows: int) -> None:
        """Look at so many rows, and free those that are over."""
        for _ in range(rows):
            if not self._unswept and not self._begin_sweep():
                break
            subject, denial = self._unswept.popitem()
            if self.is_over(denial):
                self._subtract(denial)
            elif not self._is_dropped(denial):
                self._denials[subject] = denial
        self._is_digest_known |= self.is_swept

    def is_over(self, denial: Denial) -> bool:
        """Whether a denial ended, was withdrawn, or is covered by the rule that was told."""
        is_withdrawn = denial.until == 0
        is_covered = denial.denied_at <= self._told_issued_after
        return is_withdrawn or is_covered or denial.until < self._expired_before

    def _is_dropped(self, denial: Denial) -> bool:
        return denial.denied_at <= self._dropped_until

    def _put(self, denial: Denial) -> None:
        former = self._denials.pop(denial.subject, None)
        if former is None and self._unswept:
            former = self._unswept.pop(denial.subject, None)
        if former is not None:
            self._subtract(former)
        if self.is_over(denial):
            return
        self._sum = (self._sum + _number(denial)) % _MODULUS
        if self._is_dropped(denial):
            return
        self._denials[denial.subject] = denial
        self._made_at[denial.denied_at] = self._made_at.get(denial.denied_at, 0) + 1
        self._count += 1

    def _subtract(self, denial: Denial) -> None:
        """Count a denial no more, in the digest and for the bound."""
        self._sum = (self._sum - _number(denial)) % _MODULUS
        others = self._made_at.pop(denial.denied_at, 0) - 1
        if others >= 0:  # else it was dropped before, which counted it
            self._count -= 1
        if others > 0:
            self._made_at[denial.denied_at] = others

    def _begin_sweep(self) -> bool:
        """Begin to look at every row, if that is due; whether there is one."""
        if self._is_swept_again:
            self._is_swept_again = False
            self._unswept, self._denials = self._denials, {}
        return bool(self._unswept)

    def _drop_oldest(self) -> None:
        """Replace the oldest tenth, at least, by the rule that covers them.

        The digest goes on counting them: it tells what was sent, not what is held.
        """
        kept = self._limit - self._limit // 10
        for moment in sorted(self._made_at):
            if self._count <= kept:
                break
            self._count -= self._made_at.pop(moment)
            self._dropped_until = max(self._dropped_until, moment)
        self._is_swept_again = True


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


def split_trust(trust: Trust) -> Iterator[Trust]:
    """Cut TRUST into parts that each fit a frame, in the order in which they must be sent.

    Each part is made when it is asked for: all of them together are too much for one turn of an
    event loop.
    """
    keys: list[dict[str, str]] = []
    denials: list[Denial] = []
    rows: Iterator[dict[str, str] | Denial] = chain(trust.keys, trust.denials)
    room, number = _PART_ROOM_BYTES, 0
    for row in rows:
        size = len(msgspec.json.encode(row)) + 1
        if size > room and (keys or denials):
            yield _part(trust, number, keys, denials, more=True)
            keys, denials, room, number = [], [], _PART_ROOM_BYTES, number + 1
        if isinstance(row, Denial):
            denials.append(row)
        else:
            keys.append(row)
        room -= size
    yield _part(trust, number, keys, denials, more=False)


def _part(
    trust: Trust,
    number: int,
    keys: Sequence[dict[str, str]],
    denials: Sequence[Denial],
    *,
    more: bool,
) -> Trust:
    return msgspec.structs.replace(
        trust, keys=tuple(keys), denials=tuple(denials), part=number, more=more
    )
