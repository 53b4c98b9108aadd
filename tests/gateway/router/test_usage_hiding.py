"""The usage is taken out of a chunk, and nothing else is."""

import pytest

from byoai_gateway.router.usage_hiding import may_have_usage, without_null, without_usage


@pytest.mark.parametrize(
    ("data", "left"),
    [
        ('{"id":"1","usage":null}', '{"id":"1"}'),
        ('{"usage":null,"id":"1"}', '{"id":"1"}'),
        ('{"usage": null, "id": "1"}', '{"id": "1"}'),
        ('{"id":"1","usage":null,"x":1}', '{"id":"1","x":1}'),
        ('{"id": "1" , "usage" : null , "x": 1}', '{"id": "1" , "x": 1}'),
        ('{"usage":null}', "{}"),
        ('{"id":"1","usage":{"prompt_tokens":1}}', None),
        ('{"choices":[{"usage":null}],"x":{"usage":null}}', None),
        ('{"choices":[{"usage":null}],"usage":null}', '{"choices":[{"usage":null}]}'),
        (r'{"a":"\",\"usage\":null","b":1}', None),
        (r'{"a":"\\","usage":null,"b":1}', r'{"a":"\\","b":1}'),
        ('{"a":"usage","b":["usage",null]}', None),
        ('{"a":"},{[","usage":null}', '{"a":"},{["}'),
    ],
)
@pytest.mark.parametrize(
    "frame",
    ["data: %s\n\n", "data:%s\r\n\r\n", "id: 7\nevent: x\ndata: %s\n\n", ": note\rdata: %s\r\r"],
)
def test_a_null_at_the_top_level_is_cut_out(data: str, left: str | None, frame: str) -> None:
    event = (frame % data).encode()
    assert without_null(event) == (event if left is None else (frame % left).encode())


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"a":1,\ndata: "usage":null}\n\n',
        b'data: {"usage":null}\ndata: {"usage":null}\n\n',
        b"data: [DONE]\n\n",
        b': "usage":null\n\n',
    ],
)
def test_what_is_not_one_object_in_one_line_stays(event: bytes) -> None:
    assert without_null(event) == event


@pytest.mark.parametrize(
    ("data", "left"),
    [
        ('{"id":"1","choices":[],"usage":{"prompt_tokens":1}}', None),
        ('{"choices":[],"usage":{"a":[1,{"usage":2}]},"system_fingerprint":"f"}', None),
        ('{"choices":[],"usage":{},"nvext":null}', None),
        ('{"choices":[],"usage":{"a":1},"timings":{"b":2}}', '{"choices":[],"timings":{"b":2}}'),
        ('{"timings":{"b":2},"usage":{"a":"}"}}', '{"timings":{"b":2}}'),
        (r'{"usage":{"a":1},"x":"\ud83d"}', r'{"x":"\ud83d"}'),
    ],
)
def test_of_a_usage_chunk_only_what_is_more_than_that_is_left(data: str, left: str | None) -> None:
    event = f"data: {data}\n\n".encode()
    assert without_usage(event) == (b"" if left is None else f"data: {left}\n\n".encode())
    assert may_have_usage(event)


def test_a_usage_chunk_in_several_lines_is_dropped() -> None:
    assert without_usage(b'data: {"usage":{},\ndata: "timings":{"a":1}}\n\n') == b""
