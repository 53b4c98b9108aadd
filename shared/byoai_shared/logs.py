"""Logs: JSON lines for machines, a readable console for people; never a secret.

A field appears only if its name is on the list below: what nobody thought of cannot leak. The
names of fields that were dropped are reported, so that a missing one is noticed. Values are
plain and short; bytes and objects show their size or kind. Tracebacks come without local
variables. What libraries and the event loop report goes the same way, from WARNING up.

No failure to write a line reaches the code that logs it (`standard_streams`); lines that were lost
are counted, and the count is logged once lines can be written again.
"""

import asyncio
import logging
import re
import sys
from collections.abc import Collection, MutableMapping
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from pathlib import PurePath
from typing import Any, Final, Literal, TextIO, cast

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from byoai_shared.identity import AgentIdentity, GatewayIdentity, RelayIdentity
from byoai_shared.secret import Secret
from byoai_shared.standard_streams import BackgroundStream

Logger = structlog.stdlib.BoundLogger

ALLOWED_FIELDS: Final = frozenset({
    # the frame of every line
    "event", "level", "timestamp", "part", "exception", "dropped", "logger",
    # who and where
    "address", "agent", "agent_id", "agents", "gateway", "gateways", "host", "name", "node",
    "ops", "owner", "peer", "relay", "relays", "role", "software", "tunnel", "tunnel_id",
    "upstream", "upstreams", "url", "user_id", "version", "path", "file", "directory",
    # what
    "attempt", "capacity", "code", "count", "epoch", "error", "error_type", "fault", "field",
    "fingerprint", "generation", "health", "in_flight", "key_id", "keys", "kid", "kind",
    "links", "message", "method", "model", "models", "next", "outcome", "plan", "provider",
    "reason", "request_id", "revision", "setting", "state", "status", "streams", "trace_id",
    "what",
    # how much and when
    "bytes", "drain_s", "duration_ms", "expires_at", "accepted_until", "first_token_ms",
    "queued", "retry_in_s", "round_trip_ms", "timeout_s", "waited_ms", "until",
})  # fmt: skip

MAX_TEXT: Final = 500
MAX_ITEMS: Final = 50

# Not fields: what structlog and logging hand from one step to the next.
_INTERNAL: Final = frozenset({"exc_info", "_record", "_from_structlog"})
_EVENT_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)+")
_OUR_LOGGERS: Final = "byoai"
_PEERS_FAULT: Final = "SSL handshake failed"
"""What TLS listeners report of whoever connects and is no client: a port scan, a health check."""


def configure(
    *, form: Literal["json", "console"], level: str = "info", stream: TextIO | None = None
) -> None:
    """Set up logging for the whole process, to `stream` (standard error if None)."""
    target = sys.stderr if stream is None else stream
    handler = _Handler(target)
    handler.addFilter(_format_safely)
    handler.setFormatter(_formatter(form, colours=target.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_OUR_LOGGERS).setLevel(level.upper())
    _configure_structlog()


def get_logger(part: str) -> Logger:
    """Return the logger of a part of the system: `log.info("link.opened", peer=…)`."""
    if not structlog.is_configured():
        # Whoever logs before `configure()`, a test say, has the same list of fields.
        _configure_structlog()
    logger: Logger = structlog.stdlib.get_logger(f"{_OUR_LOGGERS}.{part}", part=part)
    return logger


def report_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what the event loop reports; its own handler prints arguments, payload among them."""
    error = context.get("exception")
    if str(context.get("message", "")).startswith(_PEERS_FAULT):
        get_logger("runtime").debug("tls.handshake_failed", error_type=type(error).__name__)
        return
    get_logger("runtime").error(
        "loop.error",
        message=_without_arguments(str(context.get("message", ""))),
        exc_info=error if isinstance(error, BaseException) else None,
    )


def keep_allowed(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Keep the fields that are on the list, made plain; name the others."""
    allowed = ALLOWED_FIELDS | _INTERNAL
    dropped = sorted(name for name in event if name not in allowed)
    for name in dropped:
        del event[name]
    for name in event.keys() - _INTERNAL:
        event[name] = _plain(event[name])
    if dropped:
        event["dropped"] = dropped
    if _EVENT_NAME.fullmatch(str(event.get("event", ""))) is None:
        # A sentence here was put together from values that no list has seen.
        event["event"] = "log.event_not_constant"
    return event


_SHARED: Final[list[Any]] = [
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    keep_allowed,
]


def _configure_structlog() -> None:
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # Tests configure again; a cached logger would go on writing to a closed stream.
        cache_logger_on_first_use=False,
    )


def _formatter(form: Literal["json", "console"], *, colours: bool) -> logging.Formatter:
    processors: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if form == "json":
        frames = ExceptionDictTransformer(show_locals=False)
        processors += [
            structlog.processors.ExceptionRenderer(frames),
            structlog.processors.JSONRenderer(),
        ]
    else:
        # The default prints local variables as soon as rich is installed.
        plain = structlog.dev.plain_traceback
        processors += [structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[_as_library_message, *_SHARED], processors=processors
    )


class _Handler(logging.StreamHandler[TextIO]):
    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, and how many were lost before it."""
        try:
            super().emit(record)
        except RecursionError:  # the base class lets this one through
            return
        stream = self.stream
        if isinstance(stream, BackgroundStream) and (lost := stream.take_lost()):
            get_logger("log").warning("log.lines_lost", count=lost, next="logging goes on")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Lose the line: logging's own answer prints its arguments, in no form of ours."""


def _format_safely(record: logging.LogRecord) -> bool:
    """Give up a record's arguments where its library got them wrong (picows does)."""
    if record.args:
        try:
            record.getMessage()
        except Exception:  # noqa: BLE001 - whatever a foreign __str__ raises
            record.args = None
    return True


def _as_library_message(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    record: logging.LogRecord = event["_record"]
    text = str(event["event"])
    event["logger"] = record.name
    event["message"] = _without_arguments(text) if record.name == "asyncio" else text
    event["event"] = "library.message"
    return event


def _without_arguments(text: str) -> str:
    """Cut a report of asyncio before the arguments of the callback that it names."""
    return text.partition("\n")[0].partition("(")[0]


def _plain(value: object) -> object:
    """Return a value as something that shows no more than it has to."""
    match value:
        case None | bool() | float():
            return value
        case Enum():
            return str(value.value) if isinstance(value.value, str) else value.name
        case int():
            return value
        case str():
            return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + "…"
        case Secret():
            return "***"
        case bytes() | bytearray():
            return f"<{len(value)} bytes>"
        case list() | tuple() | set() | frozenset():
            items = cast("Collection[object]", value)
            return [_plain(item) for item in islice(items, MAX_ITEMS)]
        case AgentIdentity() | GatewayIdentity() | RelayIdentity():
            return str(value)
        case PurePath() | IPv4Address() | IPv6Address() | BaseException():
            return _plain(_in_words(value))
        case _:
            return f"<{type(value).__name__}>"


def _in_words(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 -- whatever a foreign __str__ raises
        return f"<{type(value).__name__}>"
