"""Good chats: every content that a message can have, whole and streamed, byte for byte."""

from typing import Final

from fidelity.cases.building import (
    CHAT,
    END,
    HELLO,
    ROLE,
    SOUND,
    answer,
    asked,
    chunk,
    delta,
    everywhere,
    in_events,
    in_one_piece,
)
from fidelity.differences import ORDERS_REMOVED
from fidelity.model import Case
from support.provider_script import DONE

CALL: Final = b'{"index":0,"id":"call_1","type":"function","function":{"name":"find","arguments":"{\\"a\\": 1}"}}'
SECOND: Final = (
    b'{"index":1,"id":"call_2","type":"function","function":{"name":"find","arguments":""}}'
)
LOGPROBS: Final = (
    b',"logprobs":{"content":[{"token":"Hi","logprob":-0.5,"bytes":[72,105],"top_logprobs":[]}]}'
)

CONTENTS: Final = {
    "text": b'"content":"Hello"',
    "unicode": '"content":"Grüße, 世界 😀 \u2028"'.encode(),
    "escapes": b'"content":"\\u0047r\\u00fc\\u00dfe \\ud83d\\ude00 \\/ \\t \\u0000 \\"x\\""',
    "lone surrogate": b'"content":"Hello \\ud83d"',
    "line ends inside": b'"content":"a\\r\\n\\r\\ndata: [DONE]\\n\\nb"',
    "a tool call": b'"content":null,"tool_calls":[' + CALL + b"]",
    "parallel tool calls": b'"content":null,"tool_calls":[' + CALL + b"," + SECOND + b"]",
    "a function call": b'"content":null,"function_call":{"name":"find","arguments":"{}"}',
    "reasoning": b'"content":"Hi","reasoning":"Let me see"',
    "reasoning_content": b'"content":"Hi","reasoning_content":"Let me see"',
    "reasoning_details": b'"content":"Hi","reasoning_details":[{"type":"reasoning.encrypted","data":"x=="}]',
    "a refusal": b'"content":null,"refusal":"I can not help with that"',
    "audio": b'"content":null,"audio":{"id":"a1","data":"UklGRg==","transcript":"hi","expires_at":9}',
    "images": b'"content":"","images":[{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBO"}}]',
    "annotations": b'"content":"Hi","annotations":[{"type":"url_citation","url_citation":{"url":"https://a.example"}}]',
    "unknown fields": b'"content":"Hi","x_vendor":{"a":[1,{"b":null}],"c":"\\u00e9"},"_":true',
    "number formats": b'"content":"Hi","numbers":[1e3,3.0,-0,1E+2,0.10,12345678901234567890123,1e-400]',
    "key order": b'"z":1,"content":"Hi","a":2',
    "duplicate keys": b'"content":"old","content":"Hi"',
    "blanks": b'"content" :\t"Hi" ',
    "markup": b'"content":"<html><script>&amp;</script>"',
}
"""What stands in a message, and in a delta, besides its role."""


def contents() -> list[Case]:
    """Each content in a whole answer and in a stream."""
    found: list[Case] = []
    for name, fields in CONTENTS.items():
        said = b'{"role":"assistant",' + fields + b"}"
        found += [
            in_one_piece(f"chat {name} whole", answer(said)),
            in_events(f"chat {name} streamed", chunk(ROLE), delta(b"{" + fields + b"}"), *END),
        ]
    return found


def choice(index: int, rest: bytes) -> bytes:
    """One of several choices."""
    return b'{"index":%d,%b}' % (index, rest)


ORDERS: Final = {
    "set-cookie": "a=b",
    "link": "</a>; rel=preload",
    "alt-svc": "clear",
    "access-control-allow-origin": "*",
    "strict-transport-security": "max-age=9",
    "openai-organization": "acme",
    "x-sendfile": "/etc/passwd",
    "x-should-retry": "true",
    "cache-control": "no-store",
    "etag": '"a"',
    "x-vendor-trace": "abc",
}
TWO: Final = asked(
    "/chat/completions",
    model="provider-model",
    messages=[],
    n=2,
    stream=True,
    stream_options={"include_usage": True},
)
MESSAGE: Final = b'"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"'
BOTH_CHOICES: Final = (
    b'{"id":"c1","object":"chat.completion","choices":['
    + choice(0, MESSAGE) + b"," + choice(1, MESSAGE) + b"]}"
)  # fmt: skip
USAGES: Final = {
    "null": b',"usage":null',
    "absent": b"",
    "details": b',"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,'
    b'"prompt_tokens_details":{"cached_tokens":1},"completion_tokens_details":null}',
    "floats": b',"usage":{"prompt_tokens":3.0,"completion_tokens":2.0}',
    "a cost as text": b',"usage":{"prompt_tokens":3,"completion_tokens":2,"cost":"0.01"}',
    "Anthropic's names": b',"usage":{"input_tokens":3,"output_tokens":2}',
    "llama.cpp's timings": b',"usage":{"prompt_tokens":3,"completion_tokens":2},"timings":{"predicted_ms":1.5}',
    "negative": b',"usage":{"prompt_tokens":-1,"completion_tokens":-1}',
    "an empty list": b',"usage":[]',
}


def usages() -> list[Case]:
    """Each shape of a usage, whole and in the last event of a stream that asked for it."""
    found: list[Case] = []
    for name, more in USAGES.items():
        last = chunk(b"", more)
        begun = (chunk(ROLE), delta(b'{"content":"Hi"}'))
        stop = chunk(b'{"index":0,"delta":{},"finish_reason":"stop"}')
        found += [
            in_one_piece(
                f"usage {name} whole", answer(b'{"role":"assistant","content":"Hi"}', more)
            ),
            in_events(f"usage {name} streamed", *begun, stop, last, DONE),
        ]
    return found


CASES: Final = (
    *contents(),
    *usages(),
    in_one_piece("chat two choices whole", BOTH_CHOICES),
    in_events(
        "chat two choices streamed",
        chunk(choice(0, b'"delta":{"content":"a"},"finish_reason":null')),
        chunk(choice(1, b'"delta":{"content":"b"},"finish_reason":null')),
        chunk(choice(0, b'"delta":{},"finish_reason":"stop"')),
        chunk(choice(1, b'"delta":{"content":"c"},"finish_reason":null')),
        chunk(choice(1, b'"delta":{},"finish_reason":"length"')),
        DONE,
        ask=TWO,
    ),
    in_one_piece("chat logprobs whole", SOUND.replace(b',"finish_reason"', LOGPROBS + b',"finish_reason"')),
    in_events(
        "chat logprobs streamed",
        chunk(b'{"index":0,"delta":{"content":"Hi"},"finish_reason":null' + LOGPROBS + b"}"),
        *END,
    ),
    in_one_piece("chat indented whole", SOUND.replace(b",", b",\n    ").replace(b":", b" : ")),
    in_one_piece("chat blank lines around whole", b"\r\n\n" + SOUND + b"\n\n"),
    in_one_piece("chat huge whole", answer(b'{"role":"assistant","content":"' + b"x" * 500_000 + b'"}')),
    in_one_piece("chat with the vendor's headers whole", SOUND, CHAT, headers={
        "openai-processing-ms": "12",
        "x-ratelimit-remaining-requests": "7",
        "x-vendor-trace": "abc",
    }),
    in_one_piece("chat with headers that are no provider's to send whole", SOUND, headers=ORDERS, differs=everywhere(ORDERS_REMOVED)),
    in_events("chat with headers that are no provider's to send streamed", *HELLO, headers=ORDERS, differs=everywhere(ORDERS_REMOVED)),
    in_one_piece("chat tool finish without text whole", SOUND.replace(b'"Hello"', b'""').replace(b'"stop"', b'"length"')),
)  # fmt: skip
