"""What of all requests together is kept, and of one user's."""

import asyncio

import pytest

from byoai_gateway.refusals import Refusal
from byoai_gateway.router.keeping import FREE_BYTES, SHARES, Budget
from byoai_shared.http1.errors import BodyTooLarge, TruncatedMessage
from byoai_shared.http1.framing import Framing, Open
from byoai_shared.http1.incoming import IncomingBody
from support.budgets import occupied

MOST = 100
SHARE = MOST // SHARES


class Flow:
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


def body_of(framing: Framing) -> IncomingBody:
    return IncomingBody(Flow(), framing, buffer_bytes=1024, max_overhead_bytes=1024)


def chunk(size: int) -> bytes:
    return b"%x\r\n%b\r\n" % (size, b"x" * size)


END = b"0\r\n\r\n"


def test_all_together_keep_no_more_than_there_is_room_for() -> None:
    budget = Budget(MOST)
    with occupied(budget, 9):
        with pytest.raises(Refusal) as refused, budget.hold("bob", 10):
            pass
        assert (refused.value.status, refused.value.code) == (503, "overloaded")
        assert refused.value.retry_after_s == 1
        with budget.hold("bob", 9):
            assert budget.used == MOST
        assert budget.used == MOST - 9
    assert budget.used == 0


def test_one_user_leaves_room_for_others() -> None:
    budget = Budget(MOST)
    with budget.hold("alice", SHARE):
        with pytest.raises(Refusal) as refused, budget.hold("alice", 1):
            pass
        assert (refused.value.status, refused.value.code) == (429, "overloaded")
        with budget.hold("bob", SHARE):
            pass
    with budget.hold("alice", SHARE - 1), budget.hold("alice", 1):
        assert budget.used_by("alice") == SHARE
    assert budget.used_by("alice") == 0


@pytest.mark.parametrize("before", [0, 1, SHARE])
def test_no_request_gets_more_than_its_users_share_although_it_is_the_only_one(
    before: int,
) -> None:
    budget = Budget(MOST)
    with budget.hold("alice", before) as held:
        with pytest.raises(Refusal) as refused:
            held.grow(SHARE - before + 1)
        assert (refused.value.status, refused.value.code) == (413, "memory_share_exceeded")
        assert refused.value.retry_after_s is None  # to try again is no use
        assert str(SHARE) in str(refused.value)
        assert budget.used == before
    assert budget.used == 0


def test_a_request_that_is_too_large_is_told_so_although_there_is_no_room_either() -> None:
    budget = Budget(MOST)
    with occupied(budget, 0), pytest.raises(Refusal) as refused:
        budget.hold("alice", SHARE + 1)
    assert refused.value.status == 413


async def test_what_comes_in_chunks_counts_as_it_comes() -> None:
    budget = Budget(MOST)
    with budget.hold("alice", 0) as held:
        body = body_of(Open.CHUNKED)
        body.feed(chunk(7))
        keeping = asyncio.create_task(held.keep(body))
        await asyncio.sleep(0)
        assert budget.used == 7
        body.feed(chunk(5) + END)
        assert await keeping == b"x" * 12
        assert budget.used == 12
    assert budget.used == 0


async def test_what_was_declared_is_counted_once() -> None:
    budget = Budget(MOST)
    with budget.hold("alice", 9) as held:
        body = body_of(9)
        keeping = asyncio.create_task(held.keep(body))
        await asyncio.sleep(0)
        body.feed(b"x" * 9)
        assert await keeping == b"x" * 9
        assert budget.used == 9


async def test_chunks_that_find_no_room_are_refused_at_once() -> None:
    budget = Budget(MOST)
    with occupied(budget, 5), budget.hold("alice", 0) as held:
        body = body_of(Open.CHUNKED)
        keeping = asyncio.create_task(held.keep(body))
        await asyncio.sleep(0)
        body.feed(chunk(5))
        body.feed(chunk(1))
        body.feed(chunk(1) + END)
        with pytest.raises(Refusal) as refused:
            await keeping
        assert refused.value.status == 503
        assert budget.used == MOST
    assert budget.used == 0


async def test_a_body_that_breaks_off_says_so() -> None:
    with Budget(MOST).hold("alice", 0) as held:
        body = body_of(Open.CHUNKED)
        keeping = asyncio.create_task(held.keep(body))
        await asyncio.sleep(0)
        body.fail(TruncatedMessage("it ended"))
        with pytest.raises(TruncatedMessage):
            await keeping


async def test_a_reader_who_leaves_as_it_breaks_off_leaves_no_error_behind() -> None:
    with Budget(MOST).hold("alice", 0) as held:
        body = body_of(Open.CHUNKED)
        keeping = asyncio.create_task(held.keep(body))
        await asyncio.sleep(0)
        body.fail(TruncatedMessage("it ended"))
        keeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await keeping


# -- answers


async def test_an_answer_counts_as_it_comes_beyond_what_is_free() -> None:
    budget = Budget(MOST + FREE_BYTES)
    with budget.hold("alice", 30) as held:
        body = body_of(Open.CHUNKED)
        keeping = asyncio.create_task(held.keep_answer(body, 2 * FREE_BYTES))
        await asyncio.sleep(0)
        body.feed(chunk(FREE_BYTES))
        assert budget.used == 30
        body.feed(chunk(7))
        assert budget.used == 37
        body.feed(END)
        assert await keeping == b"x" * (FREE_BYTES + 7)
        held.shrink(7)
        assert budget.used == 30
    assert budget.used == 0


async def test_an_answer_that_is_there_already_counts_too() -> None:
    budget = Budget(MOST)
    with budget.hold("alice", 0) as held:
        body = body_of(FREE_BYTES + 9)
        body.feed(b"x" * (FREE_BYTES + 9))
        assert len(await held.keep_answer(body, 2 * FREE_BYTES)) == FREE_BYTES + 9
        assert budget.used == 9


async def test_an_answer_that_finds_no_room_or_is_too_large_is_refused_at_once() -> None:
    with Budget(MOST).hold("alice", 0) as held:
        body = body_of(Open.CHUNKED)
        keeping = asyncio.create_task(held.keep_answer(body, 2 * FREE_BYTES))
        await asyncio.sleep(0)
        body.feed(chunk(FREE_BYTES + MOST + 1))
        with pytest.raises(Refusal):
            await keeping
        body = body_of(Open.CHUNKED)
        keeping = asyncio.create_task(held.keep_answer(body, FREE_BYTES))
        await asyncio.sleep(0)
        body.feed(chunk(FREE_BYTES + 1))
        with pytest.raises(BodyTooLarge):
            await keeping
