import ast
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

import pytest

from byoai_shared.identity import AgentIdentity, GatewayIdentity
from byoai_shared.logs import (
    ALLOWED_FIELDS,
    MAX_TEXT,
    configure,
    get_logger,
    report_loop_error,
)
from byoai_shared.secret import Secret

CANARY = "canary-that-nobody-may-see"
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("structlog_as_before")


class Output:
    """What was logged, as text and as JSON lines."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    @property
    def line(self) -> dict[str, Any]:
        (only,) = self.lines
        return only


@pytest.fixture
def output() -> Output:
    made = Output()
    configure(form="json", stream=made.stream)
    return made


log = get_logger("test")


def test_a_line_says_what_happened_when_and_where(output: Output) -> None:
    log.info("link.opened", peer="relay-1", attempt=2)
    assert output.line.pop("timestamp").endswith("Z")
    assert {name: value for name, value in output.line.items() if name != "timestamp"} == {
        "event": "link.opened",
        "level": "info",
        "part": "test",
        "peer": "relay-1",
        "attempt": 2,
    }


def test_a_bound_field_is_on_every_line(output: Output) -> None:
    bound = log.bind(tunnel_id="t")
    bound.info("link.opened")
    bound.warning("link.lost")
    assert [line["tunnel_id"] for line in output.lines] == ["t", "t"]


def test_what_is_below_the_level_is_not_written() -> None:
    output = Output()
    configure(form="json", level="warning", stream=output.stream)
    log.info("link.opened")
    log.warning("link.lost")
    assert output.line["event"] == "link.lost"


def test_debug_shows_more() -> None:
    output = Output()
    configure(form="json", level="debug", stream=output.stream)
    log.debug("link.ping")
    assert output.line["level"] == "debug"


# -- what is kept out


def test_a_field_that_is_not_listed_is_dropped_and_named(output: Output) -> None:
    log.info("request.received", prompt=CANARY, authorization=CANARY, status=200)
    assert output.line["dropped"] == ["authorization", "prompt"]
    assert output.line["status"] == 200
    assert CANARY not in output.text


def test_no_field_for_payload_is_listed() -> None:
    forbidden = {
        "authorization", "assertion", "body", "chunk", "content", "cookie", "data", "headers",
        "join_code", "key", "key_pem", "messages", "password", "payload", "prompt", "query",
        "request", "response", "secret", "text", "token",
    }  # fmt: skip
    assert not forbidden & ALLOWED_FIELDS


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_secret_is_masked_wherever_it_is(form: Literal["json", "console"]) -> None:
    output = Output()
    configure(form=form, stream=output.stream)
    log.info("key.loaded", key_id=Secret(CANARY), keys=[Secret(CANARY), [Secret(CANARY)]])
    assert CANARY not in output.text
    assert "***" in output.text


@dataclass
class Holder:
    token: str = CANARY


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (CANARY.encode(), f"<{len(CANARY)} bytes>"),
        (bytearray(5), "<5 bytes>"),
        (Holder(), "<Holder>"),
        ({"token": CANARY}, "<dict>"),
        ([Holder(), CANARY.encode()], ["<Holder>", f"<{len(CANARY)} bytes>"]),
        (lambda: CANARY, "<function>"),
    ],
)
def test_payload_and_objects_show_their_size_or_kind(
    output: Output, value: object, shown: object
) -> None:
    log.info("stream.reset", reason=value)
    assert output.line["reason"] == shown
    assert CANARY not in output.text


class Code(IntEnum):
    REFUSED = 3


class Fault(StrEnum):
    EXPIRED = "it has expired"


AGENT = AgentIdentity("ep5mlvsrr6yvjjetwdquf2z7ei", "a")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (True, True),
        (1.5, 1.5),
        (Code.REFUSED, "REFUSED"),
        (Fault.EXPIRED, "it has expired"),
        (Path("/a/b"), "/a/b"),
        (ip_address("::1"), "::1"),
        (("127.0.0.1", 80), ["127.0.0.1", 80]),
        (frozenset({1}), [1]),
        (ValueError("it is wrong"), "it is wrong"),
        (GatewayIdentity("one"), "gateway one"),
        (AGENT, str(AGENT)),
        ("x" * 10_000, "x" * MAX_TEXT + "…"),
        (list(range(1000)), list(range(50))),
    ],
)
def test_plain_values_are_shown_as_they_are_but_short(
    output: Output, value: object, shown: object
) -> None:
    log.info("stream.reset", reason=value)
    assert output.line["reason"] == shown


@pytest.mark.parametrize("event", [f"request for {CANARY}", CANARY, "", "Link.Opened", "link"])
def test_an_event_is_a_constant_name_or_nothing(output: Output, event: str) -> None:
    log.info(event)
    assert output.line["event"] == "log.event_not_constant"
    assert CANARY not in output.text


def test_a_line_is_one_line(output: Output) -> None:
    log.info("stream.reset", reason='line\nline\r\n{"event": "forged"}')
    assert len(output.text.splitlines()) == 1


# -- errors


def _fail(token: str) -> None:
    local = token.upper()
    raise RuntimeError(f"failed with {len(local)} characters")


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_where_but_no_local_variable(form: Literal["json", "console"]) -> None:
    output = Output()
    configure(form=form, stream=output.stream)
    token = CANARY + "-computed"
    try:
        _fail(token)
    except RuntimeError:
        log.exception("stream.failed")
    assert "failed with 35 characters" in output.text
    assert "_fail" in output.text
    assert token not in output.text
    assert token.upper() not in output.text


def test_a_traceback_is_data(output: Output) -> None:
    try:
        _fail(CANARY)
    except RuntimeError:
        log.exception("stream.failed")
    (error,) = output.line["exception"]
    assert error["exc_type"] == "RuntimeError"
    assert [frame["name"] for frame in error["frames"]][-1] == "_fail"
    assert "dropped" not in output.line


# -- what others log


def test_a_librarys_warning_is_written_the_same_way(output: Output) -> None:
    logging.getLogger("picows").warning("peer %s misbehaves", "relay-1")
    line = output.line
    assert line["event"] == "library.message"
    assert line["logger"] == "picows"
    assert line["message"] == "peer relay-1 misbehaves"
    assert line["level"] == "warning"
    assert "dropped" not in line


def test_a_librarys_chatter_is_not_written(output: Output) -> None:
    logging.getLogger("aiohttp.access").info("GET /?q=%s", CANARY)
    assert output.text == ""


def test_a_librarys_error_brings_its_traceback(output: Output) -> None:
    try:
        _fail(CANARY)
    except RuntimeError:
        logging.getLogger("aiohttp.server").exception("Error handling request")
    assert output.line["exception"][0]["exc_type"] == "RuntimeError"
    assert CANARY not in output.text


def test_a_message_that_cannot_be_formatted_is_written_without_its_arguments(
    output: Output, capfd: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("picows").error("connection %d failed", CANARY)
    assert output.line["message"] == "connection %d failed"
    assert CANARY not in output.text + capfd.readouterr().err


def test_asyncios_own_reports_lose_the_arguments_of_callbacks(output: Output) -> None:
    logging.getLogger("asyncio").error("Exception in callback f(b'%s')\nhandle: <f(...)>", CANARY)
    assert output.line["message"] == "Exception in callback f"


def test_a_report_of_the_loop_is_written_without_handles(output: Output) -> None:
    class Loop:
        pass

    context = {
        "message": f"Exception in callback f(b'{CANARY}')",
        "exception": RuntimeError("broken"),
        "handle": f"<Handle f(b'{CANARY}')>",
        "source_traceback": [CANARY],
    }
    report_loop_error(Loop(), context)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] # unused
    assert output.line["event"] == "loop.error"
    assert output.line["message"] == "Exception in callback f"
    assert output.line["exception"][0]["exc_value"] == "broken"
    assert CANARY not in output.text


@pytest.mark.parametrize(
    "message", ["SSL handshake failed", "SSL handshake failed on verifying the certificate"]
)
def test_a_stranger_at_a_listener_is_no_error_of_ours(output: Output, message: str) -> None:
    """Anybody could fill the log by connecting and leaving."""
    context = {"message": message, "exception": ConnectionResetError("left")}
    report_loop_error(object(), context)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] # unused
    assert output.text == ""


def test_a_stream_that_is_gone_does_not_stop_the_program(
    output: Output, capfd: pytest.CaptureFixture[str]
) -> None:
    output.stream.close()
    log.warning("link.lost", reason=CANARY)
    assert capfd.readouterr().err == ""


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError(CANARY)


def test_an_error_without_words_is_named_by_its_kind(output: Output) -> None:
    log.warning("link.lost", error=Unspeakable())
    assert output.line["error"] == "<Unspeakable>"


def test_a_line_that_cannot_be_written_for_depth_is_lost(output: Output) -> None:
    def endless(_: str) -> int:
        raise RecursionError

    output.stream.write = endless  # type: ignore[method-assign]
    log.warning("link.lost")


def test_before_anything_is_configured_the_same_fields_are_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    get_logger("early").warning("link.lost", prompt=CANARY, peer="relay-1")
    assert CANARY not in caplog.text
    assert "relay-1" in caplog.text


def test_the_console_is_for_people() -> None:
    output = Output()
    configure(form="console", stream=output.stream)
    log.warning("link.lost", peer="relay-1", prompt=CANARY)
    assert "link.lost" in output.text
    assert "peer=relay-1" in output.text
    assert "\x1b" not in output.text
    assert CANARY not in output.text


# -- all of our code


def logging_calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(ROOT.glob("*/byoai_*/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value).lstrip("_").rpartition(".")[2]
                if owner.lstrip("_") in {"log", "logger"} and node.func.attr in {
                    "debug", "info", "warning", "error", "exception", "critical",
                }:  # fmt: skip
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_every_field_that_we_log_is_listed() -> None:
    calls = list(logging_calls())
    assert len(calls) > 10
    unlisted = [
        (place, keyword.arg)
        for place, call in calls
        for keyword in call.keywords
        if keyword.arg not in ALLOWED_FIELDS | {"exc_info"}
    ]
    assert not unlisted


def test_no_event_that_we_log_is_put_together() -> None:
    composed = [
        place
        for place, call in logging_calls()
        if len(call.args) != 1 or isinstance(call.args[0], ast.JoinedStr | ast.BinOp | ast.Call)
    ]
    assert not composed
