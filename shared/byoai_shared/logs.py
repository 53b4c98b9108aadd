"""Logs: JSON lines for machines, a readable console for people; never a secret.

A field appears only if its name is on the list below: what nobody thought of cannot leak. The
names of fields that were dropped are reported, so that a missing one is noticed. Tracebacks
come without local variables. What libraries log goes the same way, from WARNING up.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from byoai_shared.secret import Secret

Logger = structlog.stdlib.BoundLogger

ALLOWED_FIELDS: Final = frozenset({
    # the frame of every line
    "event", "level", "timestamp", "part", "exception", "dropped", "logger",
    # who and where
    "address", "agent", "agent_id", "agents", "gateway", "gateways", "host", "name", "node",
    "ops", "owner", "peer", "relay", "relays", "role", "software", "tunnel_id", "upstream",
    "upstreams", "url", "user_id", "version", "path", "file", "directory",
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

_shared: list[Any] = [
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure(
    *, form: Literal["json", "console"], level: str = "info", stream: TextIO | None = None
) -> None:
    """Set up logging for the whole process, to `stream` (standard error if None)."""
    render: Any = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(
            colors=(stream or sys.stderr).isatty(),
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    traceback: Any = (
        structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
        if form == "json"
        else structlog.processors.format_exc_info
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_shared, _name_the_library],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            traceback,
            keep_allowed,
            render,
        ],
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("byoai").setLevel(level.upper())
    structlog.configure(
        processors=[*_shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def get_logger(part: str) -> Logger:
    """Return the logger of a part of the system: `log.info("link.opened", peer=…)`."""
    logger: Logger = structlog.stdlib.get_logger(f"byoai.{part}", part=part)
    return logger


def keep_allowed(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Keep the fields that are on the list; name the others; mask every secret."""
    dropped = sorted(name for name in event if name not in ALLOWED_FIELDS)
    for name in dropped:
        del event[name]
    if dropped:
        event["dropped"] = dropped
    for name, value in event.items():
        if isinstance(value, Secret):
            event[name] = "***"
    return event


def _name_the_library(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    record: logging.LogRecord | None = event.get("_record")
    if record is not None:
        event["logger"] = record.name
    return event
