"""Which model server has which model: reading their lists, merging them, routing by name.

Pure: what a server answered comes in, what to do with a model name comes out.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from byoai_shared.api_keys import key_fault
from byoai_shared.base_urls import corrected, endpoint_at_end
from byoai_shared.errors import ConfigError
from byoai_shared.protocol.control import UpstreamHealth
from byoai_shared.secret import Secret
from byoai_shared.server_urls import UrlFault, read_server_url

# Ollama names a model that runs on ollama.com with this tag or the end of one.
_CLOUD_TAG: Final = re.compile(r"[:-]cloud$")
_PORTS: Final = {"http": 80, "https": 443}
_MAX_LISTED: Final = 1000
_MAX_ANNOUNCED: Final = 64


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model server is reached."""

    url: str
    hostname: str
    port: int
    is_tls: bool
    prefix: str
    """Path before `/v1`, empty for nearly everybody."""
    authority: str
    """The value of the Host field that the server expects."""
    key: Secret | None = field(default=None, repr=False, compare=False)
    ca_file: Path | None = None
    """The CA that signed its certificate, if the system does not trust it."""


def parse_target(url: str, key: Secret | None = None, ca_file: Path | None = None) -> Target:
    """Read the address of a model server as people write it: with or without a final `/v1`.

    Raises:
        ConfigError: it is not an http or https address, ends with the path of an endpoint, or
            the key cannot be sent in a header.
    """
    try:
        server = read_server_url(url if "://" in url else f"http://{url}", _PORTS)
    except UrlFault as fault:
        shown = "" if "@" in url else f" {url!r}"
        raise ConfigError(
            f"the upstream{shown} is not an address: it {fault}; write it like "
            "http://127.0.0.1:8000"
        ) from fault
    parts = server.parts
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"the upstream at {server.host} may have no user, password or query in its "
            "address; give its key as `key` under [[upstreams]], or in BYOAI_AGENT_UPSTREAM_KEY"
        )
    if not parts.path.isascii():
        raise ConfigError(f"the upstream {url!r} has characters other than ASCII in its path")
    if endpoint := endpoint_at_end(parts.path):
        raise ConfigError(
            f"upstream {url!r} must end before the endpoint, without {endpoint}; "
            f"write {corrected(parts)}"
        )
    if key is not None and (wrong := key_fault(key)):
        raise ConfigError(f"the key of the upstream {url!r} {wrong}")
    is_tls = server.scheme == "https"
    prefix = server.path.removesuffix("/v1")
    address = server.origin + prefix
    return Target(address, server.host, server.port, is_tls, prefix, server.authority, key, ca_file)


class _Listing(msgspec.Struct):
    data: list[dict[str, Any]] | None


_listing: Final = msgspec.json.Decoder(_Listing)


def parse_listing(body: bytes) -> tuple[dict[str, Any], ...] | None:
    """The entries of a `GET /v1/models` answer; None if it is not one.

    Ollama without any model answers `"data": null`.
    """
    try:
        entries = _listing.decode(body).data or []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    named = (entry for entry in entries if isinstance(entry.get("id"), str) and entry["id"])
    return tuple(named)[:_MAX_LISTED]


@dataclass(slots=True, eq=False)
class Upstream:
    """One model server and what the last look at it found."""

    target: Target
    is_named: bool = True
    is_ollama: bool = False
    is_up: bool | None = None
    failures: int = 0
    fault: str = ""
    is_waiting: bool = False
    """It answers that it is loading a model, or busy: its `fault` will pass by itself."""
    models: tuple[Mapping[str, Any], ...] = ()

    def has(self, model: str) -> bool:
        """Whether the server lists the model; Ollama lets callers leave out `:latest`."""
        ids = {entry["id"] for entry in self.models}
        return model in ids or (self.is_ollama and f"{model}:latest" in ids)


@dataclass(frozen=True, slots=True)
class NoSuchModel:
    """No model server lists the model, or it may not be used; `reason` is for the caller."""

    reason: str


class Catalogue:
    """All model servers of this agent, and the rule by which a request finds its own."""

    def __init__(self, upstreams: Iterable[Upstream] = (), *, cloud_models: bool = False) -> None:
        self.upstreams: list[Upstream] = list(upstreams)
        self._cloud_models = cloud_models

    @property
    def model_decides(self) -> bool:
        """Whether a request's model must be known before it can go anywhere."""
        if len(self.upstreams) > 1:
            return True
        return not self._cloud_models and any(one.is_ollama for one in self.upstreams)

    def route(self, model: str | None) -> Upstream | NoSuchModel | None:
        """The server for a model (None: not read or not named); None if there is no server."""
        if not self.upstreams:
            return None
        if model is None:
            return self._without_model()
        if self._is_withheld(model):
            return NoSuchModel(f"model {model!r} runs in a cloud, not on this host")
        having = [one for one in self.upstreams if one.has(model)]
        if having:
            return next((one for one in having if one.is_up), having[0])
        if len(self.upstreams) == 1:
            return self.upstreams[0]  # many servers take any name, or know aliases
        return NoSuchModel(f"no model server of this agent has a model {model!r}")

    def _without_model(self) -> Upstream | NoSuchModel:
        if len(self.upstreams) == 1:
            return self.upstreams[0]
        return NoSuchModel("the request names no model, and this agent has several servers")

    def listing(self) -> list[Mapping[str, Any]]:
        """Every model once, in the order of the servers, without what is withheld."""
        seen: dict[str, Mapping[str, Any]] = {}
        for one in self.upstreams:
            for entry in one.models:
                if not (one.is_ollama and self._is_cloud(entry["id"])):
                    seen.setdefault(entry["id"], entry)
        return list(seen.values())

    def describe(self, model: str) -> Mapping[str, Any] | None:
        """The entry of one model."""
        found = (entry for entry in self.listing() if entry["id"] in {model, f"{model}:latest"})
        return next(found, None)

    def health(self) -> UpstreamHealth:
        """How the servers are, all told."""
        return _health([one.is_up for one in self.upstreams])

    def faults(self) -> list[str]:
        """What is wrong with the servers that do not answer."""
        return [f"{one.target.url}: {one.fault}" for one in self.upstreams if one.fault]

    @property
    def is_waiting(self) -> bool:
        """Whether a server will be ready by itself."""
        return any(one.is_waiting for one in self.upstreams)

    def announced(self) -> tuple[str, ...]:
        """Model names for a STATUS frame, which has room for so many."""
        names = (str(entry["id"]) for entry in self.listing())
        return tuple(name for name in names if len(name) <= 255)[:_MAX_ANNOUNCED]

    def _is_withheld(self, model: str) -> bool:
        return self._is_cloud(model) and any(one.is_ollama for one in self.upstreams)

    def _is_cloud(self, model: str) -> bool:
        return not self._cloud_models and _CLOUD_TAG.search(model) is not None


def _health(states: Sequence[bool | None]) -> UpstreamHealth:
    if not states:
        return UpstreamHealth.DOWN
    if all(state is None for state in states):
        return UpstreamHealth.UNKNOWN
    if all(states):
        return UpstreamHealth.HEALTHY
    return UpstreamHealth.DEGRADED if any(states) else UpstreamHealth.DOWN
