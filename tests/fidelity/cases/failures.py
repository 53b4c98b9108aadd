"""Answers that break: connections that end too soon, errors inside of success, cut streams."""

from typing import Any, Final
from unittest.mock import ANY

from fidelity.cases.building import (
    BOTH,
    CHAT,
    ROLE,
    SOUND,
    STOP,
    STREAM,
    chunk,
    compact,
    everywhere,
    in_events,
    in_one_piece,
    on,
    raw,
    start,
    text,
)
from fidelity.cases.endpoints import MESSAGE_STREAM, RESPONSE_STREAM, VECTOR
from fidelity.cases.framing import CHUNKED, JSON, TYPE
from fidelity.differences import (
    ACCOUNT_HIDDEN,
    BROKEN_EVENT,
    ERROR_INSIDE,
    NO_ANSWER,
    OWN_LIMIT,
    RESHAPED,
    TRUNCATED,
)
from fidelity.model import CLIENT_READS, Ask, Case, Difference, OneOf, Route
from support.provider_script import (
    DONE,
    Close,
    Die,
    Script,
    Step,
    messages_events,
    responses_events,
    typed,
)

CUT_OFF: Final = OneOf("truncated", "connection_lost")
"""The connection ended in the middle; whether its beginning has been read by then is chance."""
LENGTH: Final = {"content-length": str(len(SOUND))}
BEGUN: Final = (chunk(ROLE), text("Hi"))
SENT: Final = b"".join(BEGUN)


def unanswered() -> list[Case]:
    """Connections that end before there is an answer."""
    ends: dict[str, tuple[str, Script]] = {
        "closed": ("connection_lost", (Close(),)),
        "reset": ("connection_lost", (Die(with_reset=True),)),
        "garbage": ("malformed_answer", (b"SSH-2.0-x\r\n\r\n", Close())),
        "half a head": ("connection_lost", (b"HTTP/1.1 200 OK\r\ncontent-ty", Close())),
    }
    return [
        raw(f"no answer, {name} {how}", ask, *steps, differs=everywhere(NO_ANSWER), error={"error.code": code})
        for name, (code, steps) in ends.items()
        for ask, how in BOTH
    ]  # fmt: skip


def half(name: str, ask: Ask, *steps: Step) -> Case:
    """An answer that is broken off before anything of it could be passed on."""
    return raw(name, ask, *steps, differs=everywhere(NO_ANSWER), error={"error.code": CUT_OFF})


HALF: Final = (
    half("half a body, closed", CHAT, start({**JSON, **LENGTH}) + SOUND[:50], Close()),
    half("half a body, reset", CHAT, start({**JSON, **LENGTH}), SOUND[:50], Die(with_reset=True)),
    half("half a body in chunks", CHAT, start({**JSON, **CHUNKED}), b"32\r\n" + SOUND[:50] + b"\r\n", Close()),
    half("half a body of vectors", VECTOR, start({**JSON, "content-length": "99"}) + b'{"data":[', Close()),
    half("a stream that ends behind its role", STREAM, *(start({**TYPE, **CHUNKED}), b"%x\r\n%b\r\n" % (len(chunk(ROLE)), chunk(ROLE)), b"0\r\n\r\n")),
    half("a stream that is cut behind its role", STREAM, start({**TYPE, **CHUNKED}), b"%x\r\n%b\r\n" % (len(chunk(ROLE)), chunk(ROLE)), Close()),
    half("a stream of nothing", STREAM, start({**TYPE, **CHUNKED}), b"0\r\n\r\n"),
    half("a stream of comments", STREAM, start({**TYPE, **CHUNKED}), b"a\r\n: waiting\n\r\n", b"1\r\n\n\r\n", b"0\r\n\r\n"),
)  # fmt: skip


def cut(name: str, *events: Step, ask: Ask = STREAM, **more: Any) -> Case:
    """A stream that stops in the middle."""
    return in_events(f"cut stream, {name}", *events, ask=ask, differs=everywhere(TRUNCATED), **more)


CUT: Final = (
    cut("ended in order without a finish reason", *BEGUN),
    cut("closed", *BEGUN, CLIENT_READS, Close()),
    cut("reset", *BEGUN, CLIENT_READS, Die(with_reset=True), becomes=SENT),
    cut("closed inside an event", *BEGUN, CLIENT_READS, text("lo")[:30], Close(), becomes=SENT),
    cut("a response without its end", *responses_events("Hi")[:-1], ask=RESPONSE_STREAM),
    cut("a message without its end", *messages_events("Hi")[:-2], ask=MESSAGE_STREAM),
    raw("cut stream, ended by close without a finish reason", STREAM, start(TYPE), SENT, CLIENT_READS, Close(), differs=everywhere(TRUNCATED)),
    in_events("cut stream, half an event of JSON", *BEGUN, b'data: {"choices":[{\n\n', differs=everywhere(BROKEN_EVENT), becomes=SENT, error={"error.code": "malformed_answer"}),
    in_events("cut stream, one of two choices", *BEGUN, chunk(STOP), DONE, ask=Ask(STREAM.path, STREAM.body.replace(b"{", b'{"n":2,', 1), is_stream=True), differs=everywhere()),
)  # fmt: skip


def inside(
    name: str,
    status: int,
    code: object,
    body: bytes,
    *,
    own: Difference | None = None,
    **error: Any,
) -> list[Case]:
    """An error with status 200, in one piece, whatever was asked for.

    `own` is what else differs at the default provider.
    """
    members = {"error.code": code, **{f"error.{key}": value for key, value in error.items()}}
    at_default = on((Route.DEFAULT,), *filter(None, (ERROR_INSIDE, own)))
    differs = {**everywhere(ERROR_INSIDE), **at_default}
    return [
        in_one_piece(f"error inside 200, {name} {how}", body, ask, differs=differs, answered=status, error=members)
        for ask, how in BOTH
    ]  # fmt: skip


def first(name: str, status: int, code: object, *events: bytes, ask: Ask = STREAM) -> Case:
    """An error as the first event of a stream."""
    return in_events(f"error inside 200, {name}", *events, ask=ask, differs=everywhere(ERROR_INSIDE), answered=status, error={"error.code": code})  # fmt: skip


def later(name: str, *events: bytes, ask: Ask = STREAM, **error: Any) -> Case:
    """An error in the middle of a stream."""
    members = {f"error.{key}": value for key, value in error.items()}
    return in_events(f"error in a stream, {name}", *events, ask=ask, differs=everywhere(RESHAPED) if members else {}, error=members)  # fmt: skip


BROKE: Final = compact(
    {"error": {"message": "It broke", "type": "server_error", "code": "x", "param": None}}
)
SPENT: Final = compact({"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}})  # fmt: skip
NUMBERED: Final = b'{"error":{"message":"It broke","code":502,"metadata":{"provider_name":"Acme"}}}'

INSIDE: Final = (
    *inside("OpenAI's shape", 502, "x", BROKE, message="It broke", type="server_error"),
    *inside("a number", 502, ANY, NUMBERED, message="It broke"),
    *inside("a rate limit", 429, "rate_limit_exceeded", compact({"error": {"message": "Slow down", "code": "rate_limit_exceeded"}})),
    *inside("flat", 429, ANY, b'{"code": 429, "msg": "too many"}', own=OWN_LIMIT, message="too many"),
    *inside("base_resp", 502, ANY, compact({"base_resp": {"status_code": 1013, "status_msg": "unknown error"}, "choices": None})),
    *inside("in a choice", 502, ANY, compact({"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "error", "error": {"code": 502, "message": "It broke"}}]})),
    first("first event", 502, "x", b"data: " + BROKE + b"\n\n"),
    first("behind a comment and a role", 502, ANY, b": wait\n\n", chunk(ROLE), b"data: " + NUMBERED + b"\n\n"),
    first("named event", 502, "x", b"event: error\ndata: " + BROKE + b"\n\n"),
    later("OpenAI's shape", *BEGUN, b"data: " + BROKE + b"\n\n"),
    later("OpenAI's shape and DONE", *BEGUN, b"data: " + BROKE + b"\n\n", DONE),
    later("OpenRouter's", *BEGUN, chunk(b'{"index":0,"delta":{"content":""},"finish_reason":"error"}', b"," + NUMBERED[1:-1]), code=ANY),
    in_events("error in a stream, a spent quota", *BEGUN, b"data: " + SPENT + b"\n\n", differs=on((Route.DEFAULT,), ACCOUNT_HIDDEN)),
    in_events("error in a stream, a response that failed for a spent quota", *responses_events("Hi")[:-1], typed("response.failed", response={"status": "failed", "error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}), ask=RESPONSE_STREAM, differs=on((Route.DEFAULT,), ACCOUNT_HIDDEN), becomes=b"".join(responses_events("Hi")[:-1])),
    later("text alone", *BEGUN, b'data: {"error":"out of memory"}\n\n', message="out of memory"),
    later("a response", *responses_events("Hi")[:-1], typed("error", error={"message": "m", "code": "x", "type": "t"}), ask=RESPONSE_STREAM),
    later("a message", *messages_events("Hi")[:-3], typed("error", error={"type": "overloaded_error", "message": "Overloaded"}), ask=MESSAGE_STREAM),
    first("a message overloaded before content", 529, None, messages_events()[0], typed("error", error={"type": "overloaded_error", "message": "Overloaded"}), ask=MESSAGE_STREAM),
    in_events("error in a stream, a bare line of JSON", *BEGUN, BROKE + b"\n", differs=everywhere(TRUNCATED), becomes=SENT, error={"error.code": "x", "error.message": "It broke"}),
)  # fmt: skip

CASES: Final[tuple[Case, ...]] = (*unanswered(), *HALF, *CUT, *INSIDE)
