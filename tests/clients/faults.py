"""Transient faults of a provider, each with the bytes that a client would receive.

A refusal has the shape of the API that was called, as the official clients read it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from support.provider_script import Close, Die, Script, whole

ANTHROPIC_TYPES: Final = {
    409: "invalid_request_error",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error status with the headers that advise a client when to retry."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Broken:
    """A connection that ends before a whole response head was sent."""

    script: Script


Fault = Refusal | Broken

FAULTS: Final[Mapping[str, Fault]] = {
    "429": Refusal(429),
    "429-retry-after-1": Refusal(429, {"retry-after": "1"}),
    "429-retry-after-6": Refusal(429, {"retry-after": "6"}),
    "429-retry-after-ms-500": Refusal(429, {"retry-after-ms": "500"}),
    "503": Refusal(503),
    "503-retry-after-1": Refusal(503, {"retry-after": "1"}),
    "503-retry-after-6": Refusal(503, {"retry-after": "6"}),
    "500": Refusal(500),
    "502": Refusal(502),
    "504": Refusal(504),
    "408": Refusal(408),
    "409": Refusal(409),
    "529": Refusal(529),
    "reset": Broken((Die(with_reset=True),)),
    "closed": Broken((Close(),)),
    "half-a-head": Broken((b"HTTP/1.1 200 OK\r\ncontent-type: applica", Close())),
}


def refusal_body(status: int, *, is_anthropic: bool) -> Mapping[str, object]:
    """The body of an error, as OpenAI or Anthropic documents it."""
    message = f"scripted failure {status}"
    if is_anthropic:
        error = {"type": ANTHROPIC_TYPES.get(status, "api_error"), "message": message}
        return {"type": "error", "error": error, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy"}
    code = "rate_limit_exceeded" if status == 429 else None
    kind = "requests" if status == 429 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def script_of(fault: Fault, *, is_anthropic: bool) -> Script:
    """The steps by which a provider shows this fault once."""
    if isinstance(fault, Broken):
        return fault.script
    body = refusal_body(fault.status, is_anthropic=is_anthropic)
    return whole(body, fault.status, fault.headers)
