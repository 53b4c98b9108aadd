"""Denials as both sides of a link keep them: one digest, a bound, and ends in time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_shared.protocol.control import encode_control
from byoai_shared.protocol.frames import MAX_PAYLOAD_BYTES
from byoai_shared.protocol.trust import (
    SWEEP_ROWS,
    Denial,
    DenialSet,
    split_trust,
    trust_digest,
)
from support.trusts import denials, whole

names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=64)
some_denials = st.lists(
    st.builds(Denial, names, st.integers(1, 50), st.integers(1, 100)), max_size=300
)


def a_set(*denied: Denial, limit: int = 1000, before: int = 0, after: int = 0) -> DenialSet:
    made = DenialSet(limit)
    made.apply(denied, expired_before=before, issued_after=after)
    return swept(made)


def swept(held: DenialSet) -> DenialSet:
    """Let a set do all of its work."""
    while not held.is_swept:
        held.sweep(SWEEP_ROWS)
    return held


def digest(held: DenialSet) -> str:
    return trust_digest("i", "a", (), held)


@given(
    st.lists(st.fixed_dictionaries({"kid": names, "x": names, "y": names}), max_size=200),
    some_denials,
)
def test_trust_of_any_size_comes_in_parts_that_fit(
    keys: list[dict[str, str]], denied: list[Denial]
) -> None:
    trust = whole(7, keys, denied, issuer="\x7f" * 255, audience="é" * 255)
    parts = list(split_trust(trust))
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
    assert [part.part for part in parts] == list(range(len(parts)))
    assert all(len(encode_control(part)) <= MAX_PAYLOAD_BYTES for part in parts)
    assert [key for part in parts for key in part.keys] == keys
    assert [denial for part in parts for denial in part.denials] == denied


@given(some_denials, st.integers(0, 300), st.integers(0, 100), st.integers(0, 50))
def test_changes_lead_to_the_digest_of_the_whole_in_any_portions(
    denied: list[Denial], cut: int, before: int, after: int
) -> None:
    at_once = a_set(*denied, before=before, after=after)
    in_two = a_set(*denied[:cut])
    in_two.apply(denied[cut:], expired_before=before, issued_after=after)
    assert digest(at_once) == digest(swept(in_two))
    names_seen = {it.subject for it in denied}
    assert [it in at_once for it in names_seen] == [it in in_two for it in names_seen]


def test_another_set_has_another_digest() -> None:
    first, second = denials("t1", "t2")
    seen = {
        digest(it)
        for it in (
            a_set(),
            a_set(first),
            a_set(second),
            a_set(first, second),
            a_set(first, before=1),
            a_set(first, after=1),
        )
    }
    assert len(seen) == 6
    assert digest(a_set(first, second)) == digest(a_set(second, first))
    keys: tuple[dict[str, str], ...] = ({"kid": "1"}, {"kid": "2"})
    assert trust_digest("i", "a", keys, a_set()) == trust_digest("i", "a", keys[::-1], a_set())
    assert trust_digest("i", "a", keys, a_set()) != trust_digest("i", "b", keys, a_set())


def test_a_denial_ends_when_the_gateway_says_so_and_not_by_our_clock() -> None:
    held = a_set(Denial("t1", 10, 100), Denial("t2", 10, 200))
    held.apply((), expired_before=101, issued_after=0)
    assert "t1" not in held
    assert "t2" in held


def test_a_denial_can_be_withdrawn() -> None:
    for before in (0, 50):
        held = a_set(Denial("t1", 10, 100), before=before)
        held.apply((Denial("t1", 10, 0),), expired_before=before, issued_after=0)
        assert len(held) == 0
        assert digest(held) == digest(a_set(before=before))


def test_too_many_denials_become_one_rule_that_covers_the_oldest() -> None:
    held = a_set(*(Denial(f"t{n}", n, 10_000) for n in range(1, 1501)))
    assert len(held) == 900
    assert held.issued_after == 600
    assert "t600" not in held
    assert "t601" in held


def test_the_bound_holds_for_denials_of_one_moment() -> None:
    held = a_set(*(Denial(f"t{n}", 5, 10_000) for n in range(1001)))
    assert len(held) == 0
    assert held.issued_after == 5


def test_what_was_dropped_still_counts_in_the_digest() -> None:
    """Else a relay that is full would ask for the whole at every change."""
    many = [Denial(f"t{n}", n, 10_000) for n in range(1, 1501)]
    assert digest(a_set(*many)) == digest(a_set(*many, limit=10_000))


# -- work in portions


def many(count: int, until: int = 100) -> list[Denial]:
    return [Denial(f"t{n}", 10 + n, until) for n in range(count)]


def steps(held: DenialSet, rows: int) -> int:
    """How many sweeps it takes."""
    count = 0
    while not held.is_swept:
        held.sweep(rows)
        count += 1
    return count


@pytest.mark.parametrize("count", [SWEEP_ROWS * 4, SWEEP_ROWS * 4 - 1], ids=["exactly", "not"])
def test_denials_that_end_at_once_are_over_at_once_and_freed_in_portions(count: int) -> None:
    held = a_set(*many(count), limit=10_000)
    held.apply((), expired_before=101, issued_after=0)
    assert "t7" not in held
    assert not held.is_digest_known
    with pytest.raises(RuntimeError):
        _ = held.state
    held.sweep(SWEEP_ROWS)
    assert len(held) == count - SWEEP_ROWS
    assert steps(held, SWEEP_ROWS) == 3
    assert digest(held) == digest(a_set(before=101))


def test_a_sweep_under_way_is_finished_before_the_next_one_begins() -> None:
    held = a_set(*many(100), limit=10_000)
    for moment in range(1, 60):
        held.apply((), expired_before=moment, issued_after=moment)
        held.sweep(10)
    held.apply((Denial("later", 1000, 2000),), expired_before=101, issued_after=59)
    assert steps(held, 1) <= 2 * 100
    assert digest(held) == digest(a_set(Denial("later", 1000, 2000), before=101, after=59))


def test_what_comes_faster_than_it_is_swept_does_not_pile_up() -> None:
    held, made = DenialSet(1000), many(50_000)
    for start in range(0, 50_000, 100):
        held.apply(made[start : start + 100], expired_before=0, issued_after=0)
        assert len(held) <= 1000
    # Each step looks at one row that is in memory, and at each row twice at most.
    assert steps(held, 1) <= 2 * 2 * 1000


def test_a_denial_of_a_moment_that_was_dropped_takes_no_room() -> None:
    held = a_set(*many(1500))
    count = len(held)
    held.apply((Denial("late", 11, 100),), expired_before=0, issued_after=0)
    assert len(held) == count
    assert "late" not in held
