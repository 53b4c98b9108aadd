import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_shared.http1.errors import HeadTooLarge, LocalProtocolError, RemoteProtocolError
from byoai_shared.http1.head import (
    HeadBuffer,
    HttpLimits,
    RequestHead,
    ResponseHead,
    has_token,
    parse_request_head,
    parse_response_head,
    serialise_request,
    serialise_response,
    wants_keep_alive,
)

HOST = b"Host: a\r\n"


def cut_every_way(raw: bytes) -> list[tuple[bytes, bytes]]:
    """Cut a head whole, byte by byte, at each place, and with bytes trailing."""
    found: list[tuple[bytes, bytes]] = []
    ways = [[raw], [raw[i : i + 1] for i in range(len(raw))], [raw + b"trailing"]]
    ways += [[raw[:i], raw[i:]] for i in range(1, len(raw))]
    for pieces in ways:
        buffer = HeadBuffer(65536)
        cuts = [cut for piece in pieces if (cut := buffer.feed(piece)) is not None]
        assert len(cuts) == 1
        assert len(buffer) == 0
        found.append(cuts[0])
    return found


def read_heads(buffer: HeadBuffer, pieces: list[bytes]) -> None:
    for piece in pieces:
        found = buffer.feed(piece)
        if found is not None:
            parse_request_head(found[0])


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\nC:d\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_a_head_is_cut_out_however_it_arrives(raw: bytes) -> None:
    for head, rest in cut_every_way(raw):
        assert head == raw
        assert rest in (b"", b"trailing")


def test_a_head_without_an_end_is_refused_at_the_limit() -> None:
    buffer = HeadBuffer(1000)
    with pytest.raises(HeadTooLarge) as caught:
        read_heads(buffer, [b"x"] * 2000)
    assert caught.value.status == 431
    assert len(buffer) == 1001


def test_a_whole_head_over_the_limit_is_refused() -> None:
    with pytest.raises(HeadTooLarge):
        HeadBuffer(100).feed(b"GET / HTTP/1.1\r\nA: " + b"b" * 100 + b"\r\n\r\n")


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize("raw", [b"GET / HTTP/1.1\nHost: a\n\n", b"GET / HTTP/1.1\r\nA: b\n\r\n"])
def test_a_bare_lf_is_refused_before_the_head_ends(raw: bytes, step: int) -> None:
    buffer = HeadBuffer(65536)
    with pytest.raises(RemoteProtocolError):
        read_heads(buffer, [raw[i : i + step] for i in range(0, len(raw), step)])


def test_a_request_head_is_read() -> None:
    head = parse_request_head(
        b"POST /v1/x?q=1 HTTP/1.1\r\nHost: a\r\nX-Thing:  two words \t\r\nEmpty:\r\nO: \xff\r\n\r\n"
    )
    assert head == RequestHead(
        "POST",
        "/v1/x?q=1",
        ((b"host", b"a"), (b"x-thing", b"two words"), (b"empty", b""), (b"o", b"\xff")),
    )
    assert head.header(b"x-thing") == b"two words"
    assert head.header(b"absent") is None


def test_an_offered_upgrade_is_ignored() -> None:
    raw = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert parse_request_head(raw).header(b"upgrade") == b"websocket"


REFUSED_REQUESTS: dict[str, tuple[bytes, int]] = {
    "no version": (b"GET /\r\n" + HOST, 400),
    "two spaces": (b"GET  / HTTP/1.1\r\n" + HOST, 400),
    "trailing space": (b"GET / HTTP/1.1 \r\n" + HOST, 400),
    "leading space": (b" GET / HTTP/1.1\r\n" + HOST, 400),
    "leading empty line": (b"\r\nGET / HTTP/1.1\r\n" + HOST, 400),
    "tab for space": (b"GET\t/ HTTP/1.1\r\n" + HOST, 400),
    "no target": (b"GET HTTP/1.1\r\n" + HOST, 400),
    "lower-case method": (b"get / HTTP/1.1\r\n" + HOST, 400),
    "unknown method": (b"FOO / HTTP/1.1\r\n" + HOST, 400),
    "connect": (b"CONNECT a:1 HTTP/1.1\r\n" + HOST, 501),
    "HTTP/0.9": (b"GET / HTTP/0.9\r\n" + HOST, 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\n" + HOST, 505),
    "HTTP/2.0": (b"PRI * HTTP/2.0\r\n" + HOST, 505),
    "RTSP": (b"GET / RTSP/1.0\r\n" + HOST, 400),
    "lower-case http": (b"GET / http/1.1\r\n" + HOST, 400),
    "target not ascii": (b"GET /\xc3\xa9 HTTP/1.1\r\n" + HOST, 400),
    "target with tab": (b"GET /a\tb HTTP/1.1\r\n" + HOST, 400),
    "target without slash": (b"GET foo HTTP/1.1\r\n" + HOST, 400),
    "TLS to a plain port": (b"\x16\x03\x01\x02\x00\x01\r\n" + HOST, 400),
}
REFUSED_HEADERS: dict[str, bytes] = {
    "space before colon": b"A : b\r\n",
    "empty name": b": b\r\n",
    "no colon": b"abc\r\n",
    "folded": b"A: b\r\n c\r\n",
    "folded with tab": b"A: b\r\n\tc\r\n",
    "folded at once": b" A: b\r\n",
    "bare LF": b"A: b\nC: d\r\n",
    "bare CR": b"A: b\rC: d\r\n",
    "CR CR LF": b"A: b\r\r\n",
    "NUL": b"A: b\0c\r\n",
    "control": b"A: b\x01\r\n",
    "vertical tab": b"A:\x0bb\r\n",
    "DEL": b"A: b\x7f\r\n",
    "name with bracket": b"A(: b\r\n",
    "name not ascii": b"\xc3\xa4: b\r\n",
    "name with space": b"A B: c\r\n",
    "name in quotes": b'"A": c\r\n',
}


@pytest.mark.parametrize(("raw", "status"), REFUSED_REQUESTS.values(), ids=REFUSED_REQUESTS)
def test_a_malformed_request_line_is_refused(raw: bytes, status: int) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_request_head(raw + b"\r\n")
    assert caught.value.status == status


@pytest.mark.parametrize("raw", REFUSED_HEADERS.values(), ids=REFUSED_HEADERS)
def test_a_malformed_header_is_refused_in_both_directions(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_request_head(b"GET / HTTP/1.1\r\n" + HOST + raw + b"\r\n")
    with pytest.raises(RemoteProtocolError):
        parse_response_head(b"HTTP/1.1 200 OK\r\n" + raw + b"\r\n")


def test_too_many_headers_are_refused() -> None:
    limits = HttpLimits(max_headers=3)
    parse_request_head(b"GET / HTTP/1.1\r\nHost: a\r\nB: c\r\nD: e\r\n\r\n", limits)
    with pytest.raises(HeadTooLarge):
        parse_request_head(b"GET / HTTP/1.1\r\nHost: a\r\nB: c\r\nD: e\r\nF: g\r\n\r\n", limits)


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        (b"HTTP/1.1 200 OK", 200, b"OK"),
        (b"HTTP/1.1 200", 200, b""),
        (b"HTTP/1.1 200 ", 200, b""),
        (b"HTTP/1.0 404 Not Found At All", 404, b"Not Found At All"),
    ],
)
def test_a_status_line_is_read(line: bytes, status: int, reason: bytes) -> None:
    head = parse_response_head(line + b"\r\n\r\n")
    assert (head.status, head.reason) == (status, reason)
    assert head.minor_version == (1 if line.startswith(b"HTTP/1.1") else 0)


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 099 OK",
        b"HTTP/1.1 600 OK",
        b"HTTP/1.1 abc OK",
        b"HTTP/1.1 +20 OK",
        b"HTTP/1.1  200 OK",
        b"HTTP/2.0 200 OK",
        b"RTSP/1.0 200 OK",
        b"200 OK",
        b"HTTP/1.1 200 O\x01K",
        b"ICY 200 OK",
    ],
)
def test_a_malformed_status_line_is_refused(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_response_head(line + b"\r\n\r\n")


@pytest.mark.parametrize(
    "pair", [(b"a", b"b\r\nevil: 1"), (b"a", b"b\nc"), (b"a\r\nevil", b"b"), (b"a", b"\0")]
)
def test_a_header_that_would_begin_another_line_is_not_sent(pair: tuple[bytes, bytes]) -> None:
    with pytest.raises(LocalProtocolError):
        serialise_request(RequestHead("GET", "/", (pair,)))
    with pytest.raises(LocalProtocolError):
        serialise_response(ResponseHead(200, (pair,)))


def test_a_target_that_would_begin_another_line_is_not_sent() -> None:
    with pytest.raises(LocalProtocolError):
        serialise_request(RequestHead("GET", "/ HTTP/1.1\r\nevil: 1\r\n\r\nGET /"))


def test_a_response_gets_its_reason() -> None:
    assert serialise_response(ResponseHead(404)) == b"HTTP/1.1 404 Not Found\r\n\r\n"
    assert serialise_response(ResponseHead(599, reason=b"Own")) == b"HTTP/1.1 599 Own\r\n\r\n"


@pytest.mark.parametrize(
    ("minor_version", "connection", "expected"),
    [
        (1, None, True),
        (1, b"close", False),
        (1, b"foo, Close", False),
        (1, b"keep-alive", True),
        (0, None, False),
        (0, b"Keep-Alive", True),
        (0, b"close, keep-alive", False),
    ],
)
def test_keep_alive_follows_version_and_header(
    minor_version: int, connection: bytes | None, expected: bool
) -> None:
    headers = () if connection is None else ((b"connection", connection),)
    assert wants_keep_alive(RequestHead("GET", "/", headers, minor_version)) is expected


def test_a_token_is_found_in_any_of_the_lists() -> None:
    headers = ((b"a", b"x , Y"), (b"b", b"z"), (b"a", b"w"))
    assert has_token(headers, b"a", b"y")
    assert has_token(headers, b"a", b"w")
    assert not has_token(headers, b"a", b"z")


names = st.text(string.ascii_lowercase + string.digits + "-_", min_size=1, max_size=12).filter(
    # llhttp gives these a meaning of their own, which `test_http1_framing` is about.
    lambda name: name not in ("content-length", "transfer-encoding", "connection", "upgrade")
)
values = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20
).filter(lambda value: all(ord(c) < 0x7F or ord(c) >= 0x80 for c in value))
headers_strategy = st.lists(
    st.tuples(
        names.map(str.encode), values.map(lambda value: value.encode("latin-1").strip(b" \t"))
    ),
    max_size=8,
).map(tuple)


@given(headers=headers_strategy, step=st.integers(1, 40))
def test_what_is_written_is_read_again(headers: tuple[tuple[bytes, bytes], ...], step: int) -> None:
    head = RequestHead("POST", "/v1/models?x=%20", headers)
    raw = serialise_request(head)
    buffer = HeadBuffer(65536)
    found = [buffer.feed(raw[i : i + step]) for i in range(0, len(raw), step)][-1]
    assert found == (raw, b"")
    assert parse_request_head(raw) == head
    response = ResponseHead(200, headers, b"OK")
    assert parse_response_head(serialise_response(response)) == response


@given(raw=st.binary(max_size=200))
def test_no_bytes_but_a_head_or_a_refusal(raw: bytes) -> None:
    statuses = set[int]()
    for parse in (parse_request_head, parse_response_head):
        try:
            parse(raw + b"\r\n\r\n")
        except RemoteProtocolError as error:
            statuses.add(error.status)
    assert statuses <= {400, 431, 501, 505}
