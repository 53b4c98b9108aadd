"""What a provider's answer to `GET …/models` says about the settings.

Pure. Nothing of an answer is quoted but the names of models and the place that a redirect leads to.
"""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from byoai_gateway.preflight.findings import Finding, doubtful, failed, passed
from byoai_gateway.providers.model_lists import MAX_MODELS, MalformedList, read_list
from byoai_gateway.providers.outbound import Fetched, Unreachable, UnreachableReason
from byoai_shared.base_urls import DEFAULT_VERSION, has_version
from byoai_shared.http1.head import header

_SHOWN_NAMES: Final = 5
_LATEST: Final = ":latest"
"""Ollama lists names with this tag and takes them without."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A provider that was asked for its models."""

    section: str
    """Its table in the settings."""
    base_url: str
    has_key: bool = False

    @property
    def address_setting(self) -> str:
        """The setting of its address."""
        return f"{self.section}.base_url"

    @property
    def key_setting(self) -> str:
        """The setting of its key."""
        return f"{self.section}.key"


def model_names(answer: Fetched) -> tuple[str, ...] | None:
    """Return the models that an answer lists; None if it is no list."""
    if not 200 <= answer.status < 300:
        return None
    try:
        return tuple(model.id for model in read_list(answer.body))
    except MalformedList:
        return None


def is_wrong_path(answer: Fetched) -> bool:
    """Whether the address seems to lead beside the API."""
    if answer.status in {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}:
        return True
    return 200 <= answer.status < 300 and model_names(answer) is None


def judge(asked: Asked, answer: Fetched, suggestion: str | None) -> Finding:
    """Say what an answer means; `suggestion` is the base URL that probably is the right one."""
    names = model_names(answer)
    if names is not None:
        return _judge_list(asked, names)
    if is_wrong_path(answer):
        return _judge_wrong_path(asked, answer, suggestion)
    return _judge_status(asked, answer)


def judge_unreachable(asked: Asked, error: Unreachable) -> Finding:
    """Say why there was no answer."""
    fixes = {
        UnreachableReason.NAME_UNKNOWN: "check the host name in the address, and this host's DNS",
        UnreachableReason.CONNECTION_REFUSED: "start the server, or check host and port",
        UnreachableReason.TLS_FAILED: "check the server's certificate; if the server does not "
        "offer TLS, write http://",
        UnreachableReason.TIMED_OUT: "check the host, the port and the firewall",
        UnreachableReason.BROKEN_OFF: "check that an HTTP server listens at this port; if it "
        "expects TLS, write https://",
    }
    fix = fixes.get(error.reason, "check the address")
    if error.reason is UnreachableReason.CONNECTION_REFUSED and asked.base_url.startswith("https:"):
        fix += "; if the server does not offer TLS, write http://"
    return failed(asked.address_setting, str(error), fix)


def judge_models(wanted: Mapping[str, str], listed: Collection[str]) -> tuple[Finding, ...]:
    """Say of each setting that names a model whether the provider lists it."""
    return tuple(_judge_model(setting, model, listed) for setting, model in wanted.items())


def likely_base_urls(base_url: str) -> tuple[str, ...]:
    """Return other base URLs of the same server, the likeliest first."""
    parts = urlsplit(base_url)
    here = parts.path.rstrip("/")
    paths = [] if has_version(here) else [here + DEFAULT_VERSION]
    paths += [DEFAULT_VERSION, "/api/v1", "/openai/v1", "/v1beta/openai"]
    return tuple(
        urlunsplit((parts.scheme, parts.netloc, path, "", ""))
        for path in dict.fromkeys(paths)
        if path != here
    )


def _judge_list(asked: Asked, names: Collection[str]) -> Finding:
    if not names:
        return doubtful(
            asked.address_setting,
            "the provider answers, and lists no models",
            "load a model there, or check what the key may use",
        )
    return passed(asked.address_setting, f"the provider answers; models listed: {len(names)}")


def _judge_wrong_path(asked: Asked, answer: Fetched, suggestion: str | None) -> Finding:
    if not 200 <= answer.status < 300:
        found = f"{asked.base_url.rstrip('/')}/models does not exist ({answer.status})"
    elif _is_html(answer):
        found = "the answer is an HTML page, not JSON: the address leads to a website"
    else:
        found = "the answer is not a list of models in OpenAI's format"
    if suggestion is not None:
        return failed(asked.address_setting, found, f"write {suggestion}")
    return failed(
        asked.address_setting,
        found,
        "give the address that the provider's documentation names for OpenAI clients; it usually "
        f"ends with {DEFAULT_VERSION}",
    )


def _judge_status(asked: Asked, answer: Fetched) -> Finding:
    status = answer.status
    match status:
        case 401 | 403 if not asked.has_key:
            found = f"the provider requires a key ({status})"
            return failed(asked.key_setting, found, f"set {asked.key_setting}_file")
        case 401:
            return failed(
                asked.key_setting,
                "the provider refuses the key (401)",
                "replace it with a valid key",
            )
        case 403:
            found = "the provider does not let this key list models (403)"
            return failed(asked.key_setting, found, "check at the provider what the key may do")
        case 402:
            found = "the account of this key has no credit left (402)"
            return failed(asked.key_setting, found, "add credit at the provider")
        case 429:
            found = "the provider limits requests at the moment (429)"
            return doubtful(asked.address_setting, found, "run the check again later")
        case _ if 300 <= status < 400:
            return failed(
                asked.address_setting,
                f"the provider redirects ({status}), and redirects are not followed",
                f"write the address that it leads to{_target(answer)}",
            )
        case _:
            return failed(
                asked.address_setting,
                f"the provider answers with status {status}",
                "check the provider, and any proxy before it",
            )


def _judge_model(setting: str, model: str, listed: Collection[str]) -> Finding:
    if model in listed or model + _LATEST in listed:
        return passed(setting, f"the provider lists {model!r}")
    if len(listed) >= MAX_MODELS:
        return doubtful(
            setting,
            f"{model!r} is not among the first {MAX_MODELS} models that the provider lists",
            "check the name at the provider",
        )
    close = difflib.get_close_matches(model, listed, n=_SHOWN_NAMES, cutoff=0.4)
    shown = close or sorted(listed)[:_SHOWN_NAMES]
    known = f"use one that it lists, for example {', '.join(shown)}" if shown else "load it there"
    return failed(setting, f"the provider has no model {model!r}", known)


def _is_html(answer: Fetched) -> bool:
    kind = header(answer.headers, b"content-type") or b""
    return b"html" in kind.lower() or answer.body.lstrip()[:1] == b"<"


def _target(answer: Fetched) -> str:
    """Where a redirect leads, without what may be secret."""
    try:
        parts = urlsplit((header(answer.headers, b"location") or b"").decode("ascii"))
    except ValueError:
        return ""
    if not parts.hostname or "@" in parts.netloc:
        return ""
    path = parts.path.removesuffix("/models")
    return f", probably {urlunsplit((parts.scheme, parts.netloc, path, '', ''))}"
