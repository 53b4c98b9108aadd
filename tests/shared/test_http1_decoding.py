from itertools import pairwise
from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_shared.http1.decoding import CloseDecoder, Decoder, LengthDecoder, decoder
from byoai_shared.http1.errors import RemoteProtocolError, TruncatedMessage
from byoai_shared.http1.framing import Framing, Open

OVERHEAD = 1000


def run(framing: Framing, pieces: list[bytes]) -> tuple[bytes, bytes, Decoder]:
    """Feed until done; what the connection would read next counts as rest."""
    body = decoder(framing, OVERHEAD)
    out: list[bytes] = []
    rest = b""
    for piece in pieces:
        if body.done:
            rest += piece
        else:
            out.append(body.feed(piece))
    return b"".join(out), body.rest + rest, body


def every_way(framing: Framing, raw: bytes, *, trailing: bytes = b"NEXT") -> set[bytes]:
    """Decode whole, byte by byte, cut in two anywhere, each with and without trailing bytes."""
    found: set[bytes] = set()
    for tail in (b"", trailing):
        full = raw + tail
        ways = [[full], [full[i : i + 1] for i in range(len(full))]]
        ways += [[full[:i], full[i:]] for i in range(1, len(full))]
        for pieces in ways:
            payload, rest, body = run(framing, pieces)
            assert body.done
            assert rest == tail
            body.end()
            found.add(payload)
    return found


CHUNKED: dict[str, tuple[bytes, bytes]] = {
    "empty": (b"0\r\n\r\n", b""),
    "one": (b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
    "two": (b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
    "upper-case": (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    "lower-case": (b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    "leading zeros": (b"0003\r\nabc\r\n000\r\n\r\n", b"abc"),
    "line ends in payload": (b"6\r\n\r\n0\r\n\r\r\n0\r\n\r\n", b"\r\n0\r\n\r"),
    "extension": (b"3;a=b\r\nabc\r\n0;c\r\n\r\n", b"abc"),
    "quoted extension": (b'3;a="b c"\r\nabc\r\n0\r\n\r\n', b"abc"),
    "trailers": (b"3\r\nabc\r\n0\r\nA: b\r\nC:\r\n\r\n", b"abc"),
    "trailer like a length": (b"0\r\nContent-Length: 5\r\n\r\n", b""),
}


@pytest.mark.parametrize(("raw", "payload"), CHUNKED.values(), ids=CHUNKED)
def test_a_chunked_body_is_decoded_however_it_arrives(raw: bytes, payload: bytes) -> None:
    assert every_way(Open.CHUNKED, raw) == {payload}


@pytest.mark.parametrize("length", [0, 1, 5, 300])
def test_a_body_of_declared_length_is_decoded_however_it_arrives(length: int) -> None:
    payload = bytes(i % 251 for i in range(length))
    assert every_way(length, payload) == {payload}


REFUSED: dict[str, bytes] = {
    "bare LF after size": b"3\nabc\r\n0\r\n\r\n",
    "bare LF after data": b"3\r\nabc\n0\r\n\r\n",
    "bare LF everywhere": b"3\nabc\n0\n\n",
    "bare CR after size": b"3\rabc\r\n",
    "CR in the size": b"3\r\r\nabc\r\n",
    "LF in an extension": b"3;a\nabc\r\n0\r\n\r\n",
    "CR in an extension": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "control in an extension": b"3;\x01\r\nabc\r\n0\r\n\r\n",
    "NUL in an extension": b"3;\0\r\nabc\r\n0\r\n\r\n",
    "blank after size": b"3 \r\nabc\r\n0\r\n\r\n",
    "blank before extension": b"3 ;a\r\nabc\r\n0\r\n\r\n",
    "blank before size": b" 3\r\nabc\r\n0\r\n\r\n",
    "hex prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "plus": b"+3\r\nabc\r\n0\r\n\r\n",
    "minus": b"-3\r\nabc\r\n0\r\n\r\n",
    "underscore": b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    "not hex": b"g\r\nabc\r\n0\r\n\r\n",
    "no size": b"\r\nabc\r\n0\r\n\r\n",
    "extension without size": b";a\r\n0\r\n\r\n",
    "sixteen digits": b"0000000000000003\r\nabc\r\n0\r\n\r\n",
    "overflow": b"ffffffffffffffffff\r\nabc",
    "payload too long": b"3\r\nabcd\r\n0\r\n\r\n",
    "payload too short": b"3\r\nab\r\n0\r\n\r\n",
    "half a line end": b"3\r\nabc\rX0\r\n\r\n",
    "trailer without colon": b"0\r\nA b\r\n\r\n",
    "trailer without name": b"0\r\n: b\r\n\r\n",
    "trailer with blank": b"0\r\nA : b\r\n\r\n",
    "trailer with control": b"0\r\nA: \x01\r\n\r\n",
    "trailer folded": b"0\r\nA: b\r\n c\r\n\r\n",
    "trailer with bare LF": b"0\r\nA: b\nC: d\r\n\r\n",
    "response instead of trailer": b"0\r\nHTTP/1.1 200 OK\r\n\r\n",
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
def test_a_malformed_chunked_body_is_refused_however_it_arrives(raw: bytes) -> None:
    ways = [[raw], [raw[i : i + 1] for i in range(len(raw))], [raw + b"trailing\r\n"]]
    ways += [[raw[:i], raw[i:]] for i in range(1, len(raw))]
    for pieces in ways:
        with pytest.raises(RemoteProtocolError):
            run(Open.CHUNKED, pieces)


@pytest.mark.parametrize("step", [1, 700, 1 << 20])
def test_endless_extensions_are_refused(step: int) -> None:
    for raw in (
        b"3;" + b"a" * 100_000,
        b"3;" + b"a" * 900 + b"\r\nabc\r\n" + b"1;bbbbbbbb\r\nx\r\n" * 50,
    ):
        with pytest.raises(RemoteProtocolError):
            run(Open.CHUNKED, [raw[i : i + step] for i in range(0, len(raw), step)])


@pytest.mark.parametrize("raw", [b"0\r\n" + b"A: b\r\n" * 1000, b"0\r\nA: " + b"b" * 5000])
def test_endless_trailers_are_refused(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        run(Open.CHUNKED, [raw])
    with pytest.raises(RemoteProtocolError):
        run(Open.CHUNKED, [raw[i : i + 1] for i in range(len(raw))])


@given(data=st.data())
def test_a_body_cut_short_anywhere_is_truncated(data: Any) -> None:
    raw = data.draw(st.sampled_from([raw for raw, _ in CHUNKED.values()]))
    cut = data.draw(st.integers(0, len(raw) - 1))
    step = data.draw(st.integers(1, len(raw)))
    short = raw[:cut]
    _, rest, body = run(Open.CHUNKED, [short[i : i + step] for i in range(0, cut, step)])
    assert not body.done
    assert rest == b""
    with pytest.raises(TruncatedMessage):
        body.end()


@given(length=st.integers(1, 1000), data=st.data())
def test_a_declared_length_cut_short_is_truncated(length: int, data: Any) -> None:
    body = LengthDecoder(length)
    cut = data.draw(st.integers(0, length - 1))
    assert body.feed(b"x" * cut) == b"x" * cut
    with pytest.raises(TruncatedMessage):
        body.end()


def test_a_body_until_close_ends_with_the_connection_only() -> None:
    body = CloseDecoder()
    assert body.feed(b"0\r\n\r\n") == b"0\r\n\r\n"
    assert not body.done
    body.end()
    assert body.done


class SecondOpinion:
    """What llhttp makes of the same body."""

    def __init__(self, raw: bytes) -> None:
        self.payload = b""
        self.is_done = False
        parser = httptools.HttpResponseParser(self)
        parser.feed_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + raw)

    def on_body(self, data: bytes) -> None:
        self.payload += data

    def on_message_complete(self) -> None:
        self.is_done = True


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=70), max_size=6),
    cuts=st.lists(st.integers(0, 500), max_size=6),
    upper=st.booleans(),
)
def test_any_chunking_gives_the_payload_back_and_llhttp_agrees(
    chunks: list[bytes], cuts: list[int], upper: bool
) -> None:
    size = b"%X\r\n" if upper else b"%x\r\n"
    raw = b"".join(size % len(c) + c + b"\r\n" for c in chunks) + b"0\r\n\r\n"
    marks = sorted({0, len(raw), *(cut % len(raw) for cut in cuts)})
    pieces = [raw[a:b] for a, b in pairwise(marks)]
    payload, rest, body = run(Open.CHUNKED, pieces)
    assert body.done
    assert (payload, rest) == (b"".join(chunks), b"")
    opinion = SecondOpinion(raw)
    assert opinion.is_done
    assert opinion.payload == payload


@given(raw=st.text("0123af;\r\nx: ", max_size=40).map(str.encode))
def test_whatever_is_taken_llhttp_takes_alike(raw: bytes) -> None:
    try:
        payload, rest, body = run(Open.CHUNKED, [raw])
    except RemoteProtocolError:
        return
    # Strictness is one-sided: what is refused here may pass there, never the reverse.
    if body.done:
        opinion = SecondOpinion(raw[: len(raw) - len(rest)])
        assert opinion.is_done
        assert opinion.payload == payload


def test_payload_that_is_a_whole_read_is_not_copied() -> None:
    piece = b"x" * 1000
    chunked = decoder(Open.CHUNKED, OVERHEAD)
    chunked.feed(b"2710\r\n")
    assert chunked.feed(piece) is piece
    assert decoder(5000, OVERHEAD).feed(piece) is piece
    assert CloseDecoder().feed(piece) is piece


def test_chunks_of_one_read_come_as_one_piece() -> None:
    payload = decoder(Open.CHUNKED, OVERHEAD).feed(b"3\r\nabc\r\n2\r\nde\r\n1\r\nf")
    assert payload == b"abcdef"
