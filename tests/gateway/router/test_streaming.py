"""A streamed answer: held, passed on in whole events, and ended honestly. No socket."""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_gateway.router.classify import failure_of_error
from byoai_gateway.router.dialects import Usage
from byoai_gateway.router.endpoints import Dialect
from byoai_gateway.router.failures import AttemptFailed, FailureKind
from byoai_gateway.router.keeping import FREE_BYTES, SHARES, Budget, Held
from byoai_gateway.router.streaming import HELD_BYTES, StreamedAnswer
from byoai_gateway.router.upstream import ProviderName
from byoai_shared.http1.errors import ConnectionClosed, TruncatedMessage
from byoai_shared.http1.framing import Open
from byoai_shared.http1.incoming import BodySink
from byoai_shared.http1.outgoing import OutgoingBody
from support.budgets import occupied

ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
TEXT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
STOP = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'
ERROR = b'data: {"error":{"message":"broken","code":500}}\n\n'
DONE = b"data: [DONE]\n\n"
COMMENT = b": PROCESSING\n\n"
MOST = 32 * 1024 * 1024
"""There is room for so much of answers."""


class Source:
    """Notes what the answer asks of its provider's connection."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.is_attached = True

    def attach(self, sink: BodySink) -> None:
        sink.attached(self)

    def detach(self) -> None:
        self.is_attached = False

    def pause(self) -> None:
        self.asked.append("pause")

    def resume(self) -> None:
        self.asked.append("resume")


class Wire(asyncio.Transport):
    """Notes what the client gets."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.on_write: Callable[[], None] = lambda: None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))
        self.on_write()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return False


class Exchange:
    """An answer between a provider fed by hand and a client whose bytes are noted."""

    def __init__(
        self, *, hide_usage: bool = False, silence_s: float = 60.0, choices: int = 1
    ) -> None:
        self.budget = Budget(MOST)
        self.held = Held(self.budget, "alice")
        self.answer = StreamedAnswer(
            Dialect.CHAT,
            provider=ProviderName.DEFAULT,
            explain_error=partial(failure_of_error, ProviderName.DEFAULT),
            silence_s=silence_s,
            hide_usage=hide_usage,
            held=self.held,
            choices=choices,
        )
        self.source = Source()
        self.source.attach(self.answer)
        self.wire = Wire()
        self.ends: list[str] = []
        self.body = OutgoingBody(
            self.wire,
            Open.UNTIL_CLOSE,
            b"",
            on_end=lambda: self.ends.append("end"),
            on_abort=lambda: self.ends.append("abort"),
        )

    @property
    def sent(self) -> bytes:
        return b"".join(self.wire.writes)

    async def begin(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.answer.write(piece)
        await self.answer.opened()
        self.answer.pour_into(self.body)


async def kind_before(*pieces: bytes, is_cut: bool = False) -> FailureKind:
    exchange = Exchange()
    for piece in pieces:
        exchange.answer.write(piece)
    if is_cut:
        exchange.answer.fail(TruncatedMessage("cut"))
    else:
        exchange.answer.finish()
    with pytest.raises(AttemptFailed) as caught:
        await exchange.answer.opened()
    return caught.value.failure.kind


async def test_roles_and_comments_do_not_commit_and_content_does() -> None:
    exchange = Exchange()
    opened = asyncio.ensure_future(exchange.answer.opened())
    exchange.answer.write(COMMENT + ROLE)
    await asyncio.sleep(0)
    assert not opened.done()
    exchange.answer.write(TEXT)
    await opened
    exchange.answer.pour_into(exchange.body)
    assert exchange.sent == COMMENT + ROLE + TEXT
    assert exchange.source.asked == ["pause", "resume"]


async def test_what_is_kept_in_the_hope_of_content_is_bounded() -> None:
    beginning = ROLE * (HELD_BYTES // len(ROLE))
    exchange = Exchange()
    await exchange.begin(beginning, TEXT)
    assert exchange.sent == beginning + TEXT
    assert await kind_before(beginning, ROLE) is FailureKind.MALFORMED


async def test_only_whole_events_are_passed_on_and_in_the_same_turn() -> None:
    exchange = Exchange()
    await exchange.begin(TEXT)
    exchange.answer.write(TEXT + TEXT[:10])
    assert exchange.wire.writes[1:] == [TEXT]
    exchange.answer.write(TEXT[10:] + STOP)
    exchange.answer.finish(DONE)
    assert await exchange.answer.ended() is None
    assert exchange.sent == TEXT * 3 + STOP + DONE
    assert exchange.ends == ["end"]


async def test_a_missing_done_is_added_and_nothing_passes_behind_one() -> None:
    added, extra = Exchange(), Exchange()
    await added.begin(TEXT)
    added.answer.finish(STOP)
    await extra.begin(TEXT)
    extra.answer.write(STOP + DONE + TEXT)
    extra.answer.finish(TEXT)
    for exchange in (added, extra):
        assert await exchange.answer.ended() is None
        assert exchange.sent == TEXT + STOP + DONE


@pytest.mark.parametrize(
    ("last", "kind"),
    [
        (b"", FailureKind.TRUNCATED),
        (TEXT[:20], FailureKind.TRUNCATED),
        (b"data: {\n\n", FailureKind.MALFORMED),
        (ERROR, FailureKind.ERROR_IN_ANSWER),
    ],
)
async def test_a_broken_answer_ends_with_an_error_and_no_done(
    last: bytes, kind: FailureKind
) -> None:
    exchange = Exchange()
    await exchange.begin(TEXT)
    exchange.answer.finish(last)
    failure = await exchange.answer.ended()
    assert failure is not None
    assert failure.kind is kind
    told = exchange.sent.removeprefix(TEXT)
    assert told.startswith(b"data: {")
    assert b'"finish_reason":"error"' in told
    assert DONE not in told
    assert exchange.ends == ["end"]


def stop(index: int) -> bytes:
    return STOP.replace(b'{"delta"', b'{"index":%d,"delta"' % index)


@pytest.mark.parametrize(
    ("ends", "is_whole"),
    [
        (stop(0), False),
        (stop(0) + stop(0), False),
        (stop(0) + stop(1), True),
        (stop(1) + TEXT + stop(0), True),
        (stop(0) + stop(1) + TEXT, False),
        # A provider may know of one choice only: that it is done is its word.
        (stop(0) + DONE, True),
    ],
)
async def test_an_answer_of_two_choices_is_whole_when_both_are(
    ends: bytes, *, is_whole: bool
) -> None:
    exchange = Exchange(choices=2)
    await exchange.begin(TEXT)
    exchange.answer.finish(ends)
    failure = await exchange.answer.ended()
    assert (failure is None) is is_whole
    assert exchange.sent.endswith(DONE) is is_whole


async def test_before_content_each_break_is_a_failure_of_the_attempt() -> None:
    assert await kind_before() is FailureKind.TRUNCATED
    assert await kind_before(ROLE) is FailureKind.TRUNCATED
    assert await kind_before(DONE) is FailureKind.TRUNCATED
    assert await kind_before(ROLE, ERROR) is FailureKind.ERROR_IN_ANSWER
    assert await kind_before(b"data: {\n\n") is FailureKind.MALFORMED
    assert await kind_before(ROLE, is_cut=True) is FailureKind.TRUNCATED


async def test_an_answer_without_content_that_ended_properly_is_whole() -> None:
    exchange = Exchange()
    exchange.answer.finish(ROLE + STOP)
    await exchange.answer.opened()
    exchange.answer.pour_into(exchange.body)
    assert await exchange.answer.ended() is None
    assert exchange.sent == ROLE + STOP + DONE


@pytest.mark.parametrize("is_hidden", [True, False])
async def test_usage_is_noted_and_hidden_from_who_did_not_ask(*, is_hidden: bool) -> None:
    exchange = Exchange(hide_usage=is_hidden)
    await exchange.begin(TEXT + STOP)
    exchange.answer.finish(USAGE + DONE)
    assert exchange.answer.usage is not None
    assert exchange.answer.usage.prompt_tokens == 1
    assert (USAGE in exchange.sent) is not is_hidden


async def test_silence_ends_the_answer_with_an_error() -> None:
    exchange = Exchange(silence_s=0.01)
    await exchange.begin(TEXT)
    failure = await exchange.answer.ended()
    assert failure is not None
    assert failure.kind is FailureKind.SILENCE
    assert not exchange.source.is_attached


async def test_a_slow_client_holds_the_provider_back() -> None:
    exchange = Exchange()
    await exchange.begin(TEXT)
    exchange.body.pause()
    exchange.body.resume()
    assert exchange.source.asked[-2:] == ["pause", "resume"]
    exchange.answer.finish(STOP)


async def test_a_client_that_is_gone_lets_go_of_the_provider() -> None:
    exchange = Exchange()
    await exchange.begin(TEXT)
    exchange.body.lost()
    assert not exchange.source.is_attached
    with pytest.raises(ConnectionClosed):
        await exchange.answer.ended()


# -- what is kept counts


def long_event(size: int) -> bytes:
    return TEXT.replace(b'"a"', b'"%b"' % (b"a" * (size - len(TEXT) + 1)))


async def test_a_small_beginning_costs_nothing() -> None:
    exchange = Exchange()
    exchange.answer.write(ROLE * (FREE_BYTES // len(ROLE)))
    assert exchange.budget.used == 0


async def test_what_is_held_counts_as_it_comes_until_the_client_has_it() -> None:
    exchange = Exchange()
    beginning = ROLE * (FREE_BYTES // len(ROLE))
    exchange.answer.write(beginning)
    exchange.answer.write(ROLE * 9)
    assert exchange.budget.used == len(beginning) + 9 * len(ROLE) - FREE_BYTES
    await exchange.begin(TEXT)
    exchange.answer.write(TEXT)
    assert exchange.budget.used == 0
    exchange.answer.finish(STOP)


async def test_an_attempt_that_fails_gives_back_what_it_held() -> None:
    exchange = Exchange()
    exchange.answer.write(ROLE * (2 * FREE_BYTES // len(ROLE)))
    exchange.answer.write(ERROR)
    with pytest.raises(AttemptFailed):
        await exchange.answer.opened()
    assert exchange.budget.used > 0
    exchange.answer.forget()
    assert exchange.budget.used == 0


async def test_a_long_event_counts_until_a_client_that_is_behind_has_read_on() -> None:
    exchange = Exchange()
    await exchange.begin(TEXT)
    event = long_event(4 * FREE_BYTES)
    exchange.answer.write(event[: 3 * FREE_BYTES])
    assert exchange.budget.used == 2 * FREE_BYTES
    exchange.wire.on_write = exchange.body.pause
    exchange.answer.write(event[3 * FREE_BYTES :])
    assert exchange.sent == TEXT + event
    assert exchange.budget.used == 2 * FREE_BYTES
    exchange.body.resume()
    assert exchange.budget.used == 0
    exchange.answer.finish(STOP)


async def test_a_beginning_that_finds_no_room_is_a_failure_of_our_own() -> None:
    exchange = Exchange()
    with occupied(exchange.budget, FREE_BYTES):
        exchange.answer.write(b"x" * FREE_BYTES)
        exchange.answer.write(b"x" * FREE_BYTES)
        exchange.answer.write(b"x")
        with pytest.raises(AttemptFailed) as caught:
            await exchange.answer.opened()
    failure = caught.value.failure
    assert (failure.kind, failure.status) == (FailureKind.OVERLOADED, 503)
    assert (failure.error.code, failure.retry_after_s) == ("overloaded", 1)
    assert not exchange.source.is_attached


async def test_an_event_that_finds_no_room_ends_the_answer_with_an_error() -> None:
    exchange = Exchange()
    await exchange.begin(TEXT)
    with exchange.budget.hold("alice", MOST // SHARES):
        exchange.answer.write(b"data: " + b"x" * 2 * FREE_BYTES)
        failure = await exchange.answer.ended()
    assert failure is not None
    assert (failure.kind, failure.status) == (FailureKind.OVERLOADED, 429)
    assert b'"code":"overloaded"' in exchange.sent
    assert DONE not in exchange.sent


ANY_EVENTS = st.lists(
    st.sampled_from(
        [
            *(TEXT, TEXT, TEXT, ROLE, USAGE, COMMENT, STOP, DONE, ERROR),
            TEXT.replace(b"\n", b"\r\n"),
            b"event: chunk\n" + TEXT,
            b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}],\ndata: "x":1}\n\n',
            b'data: {"choices":[{"delta":{"content":"a\\n\\ndata: b"}}],"usage":null}\n\n',
            b'data: {"choices":[{"error":{"message":"broken"}}]}\n\n',
            b'data: {"choices":[{"delta":{}}]} {"choices":[]}\n\n',
            b"data: not JSON\n\n",
            b"\n",
        ]
    ),
    max_size=12,
)


def passed_on(pieces: Iterable[bytes]) -> tuple[bytes, Usage | None, list[str]]:
    """What the client gets of an answer that has begun, what it cost, and how it ended."""
    exchange = Exchange()
    exchange.answer.write(TEXT)
    exchange.answer.pour_into(exchange.body)
    for piece in pieces:
        exchange.answer.write(piece)
    exchange.answer.finish()
    return exchange.sent, exchange.answer.usage, exchange.ends


@given(ANY_EVENTS, st.lists(st.integers(0, 2000), max_size=8))
async def test_however_bytes_come_the_same_is_passed_on(
    events: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(events)
    at = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(at)]
    assert passed_on(pieces) == passed_on(stream[i : i + 1] for i in range(len(stream)))
