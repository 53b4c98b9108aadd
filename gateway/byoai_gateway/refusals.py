"""The gateway's way to say no: one exception that knows its HTTP answer.

Codes are part of the API: agents decide by them whether trying again is any use.
"""

from collections.abc import Iterable, Mapping
from http import HTTPStatus

import msgspec

from byoai_shared.api_errors import ApiError, ApiErrorBody, api_error
from byoai_shared.errors import ByoaiError


class Refusal(ByoaiError):
    """A call that is answered with an error; the sentence is shown to people as it is."""

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        fields: Mapping[str, str] | None = None,
        allowed: Iterable[str] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.fields = dict(fields or {})
        self.allowed = tuple(sorted(allowed))
        """The methods that would do, for an answer 405."""

    def headers(self) -> dict[str, str]:
        """The fields of the answer."""
        fields = {"Content-Type": "application/json"}
        if self.retry_after_s is not None:
            fields["Retry-After"] = str(self.retry_after_s)
        if self.status == HTTPStatus.UNAUTHORIZED:
            fields["WWW-Authenticate"] = "Bearer"
        if self.allowed:
            fields["Allow"] = ", ".join(self.allowed)
        return fields

    def body(self) -> bytes:
        """The answer in OpenAI's shape."""
        return msgspec.json.encode(ApiErrorBody(self.error(), self.fields or msgspec.UNSET))

    def error(self) -> ApiError:
        """The inside of the answer."""
        return api_error(self.status, self.code, str(self), param=self.param)


def invalid_fields(sentences: Mapping[str, str], code: str = "invalid_body") -> Refusal:
    """Say what is wrong with each field of a body or query: a sentence each, never a value."""
    first, sentence = next(iter(sentences.items()))
    return Refusal(
        HTTPStatus.BAD_REQUEST,
        code,
        f"{first}: {sentence}",
        param=first,
        fields=sentences,
    )


def method_not_allowed(allowed: Iterable[str]) -> Refusal:
    """The path is right, the method is not."""
    return Refusal(
        HTTPStatus.METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path does not take this method; the field Allow of this answer names those it takes",
        allowed=allowed,
    )


def plan_required() -> Refusal:
    """The user's plan has no tunnels."""
    return Refusal(
        HTTPStatus.FORBIDDEN,
        "plan_required",
        "self-hosting needs the plan `pro`; upgrade in the application's settings",
    )


def user_not_found() -> Refusal:
    """Said of every user but the one of the token, whether there is one or not."""
    return Refusal(
        HTTPStatus.NOT_FOUND,
        "user_not_found",
        "there is no such user; leave userId out",
        param="userId",
    )


def tunnel_not_found(field: str | None = None) -> Refusal:
    """Said of another user's tunnel in the very words used for one that does not exist.

    `field` is where a body names it; one that a path names stands in none.
    """
    sentence = "there is no such tunnel"
    return Refusal(
        HTTPStatus.NOT_FOUND,
        "tunnel_not_found",
        sentence,
        param=field,
        fields=None if field is None else {field: sentence},
    )


def tunnel_revoked() -> Refusal:
    """The tunnel or the agent was removed by its owner."""
    return Refusal(
        HTTPStatus.FORBIDDEN,
        "tunnel_revoked",
        "this tunnel or agent was revoked by its owner; get a new join code to join again",
    )


def agent_locked() -> Refusal:
    """One of the agent's old keys was used again; the agent waits for its owner."""
    return Refusal(
        HTTPStatus.FORBIDDEN,
        "agent_locked",
        "this agent is locked because one of its old keys was used again, as a copy of its state "
        "would do; unlock it on the tunnel's page if this host is the right one, or join this "
        "host again with a new code: byoai-agent join CODE --replace",
        retry_after_s=30,
    )


def key_replaced(newest_host: str | None) -> Refusal:
    """The caller has an old copy of the agent's state; `newest_host` has the newest one."""
    where = f", last used on host {newest_host!r}" if newest_host else ""
    return Refusal(
        HTTPStatus.FORBIDDEN,
        "key_replaced",
        f"this host's key was replaced by a newer one{where}: its state is an old copy, such as "
        "a restored backup; get a new join code on the tunnel's page and run: "
        "byoai-agent join CODE --replace",
    )


def agent_not_found() -> Refusal:
    """The tunnel has no agent of that id, or has it no longer."""
    return Refusal(HTTPStatus.NOT_FOUND, "agent_not_found", "the tunnel has no such agent")
