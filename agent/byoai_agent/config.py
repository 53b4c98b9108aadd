"""The agent's settings: every one has a default that suits a single GPU host.

Read from `agent.toml` in the state directory (or `--config FILE`), from `BYOAI_AGENT_…` in
the environment and from flags; see `byoai_shared.config` for the order. Who the agent is does
not stand here but in the state directory.
"""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from byoai_shared.log_settings import LogSettings
from byoai_shared.secret import Secret

PREFIX = "BYOAI_AGENT_"

_MIB = 1024 * 1024


class NamedUpstream(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model server, named by its owner."""

    url: Annotated[str, Meta(description="base address, for example http://127.0.0.1:8000")]
    key: Annotated[
        Secret | None,
        Meta(description="API key of that server, sent to it as a bearer token"),
    ] = None
    ca_file: Annotated[
        Path | None,
        Meta(
            description="PEM file of the CA that signed that server's certificate, where this "
            "host does not trust it already"
        ),
    ] = None


class Discovery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How model servers are looked for when none is named."""

    host: Annotated[
        str,
        Meta(
            description="host on which the known ports are tried; localhost is this host by IPv4 "
            "and IPv6"
        ),
    ] = "localhost"
    ports: Annotated[
        tuple[int, ...],
        Meta(
            description="ports that are tried: Ollama, vLLM and others, llama.cpp, SGLang, "
            "LM Studio"
        ),
    ] = (11434, 8000, 8080, 30000, 1234)
    probe_s: Annotated[
        float,
        Meta(description="time between two looks at the model servers", gt=0, extra={"unit": "s"}),
    ] = 15.0
    probe_timeout_s: Annotated[
        float,
        Meta(description="time a model server has to list its models", gt=0, extra={"unit": "s"}),
    ] = 5.0


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one agent takes on."""

    concurrent_requests: Annotated[
        int, Meta(description="requests handed to the model servers at once", ge=1)
    ] = 64
    queued_requests: Annotated[
        int, Meta(description="requests that may wait for a place; more get 429", ge=0)
    ] = 128
    queue_wait_s: Annotated[
        float,
        Meta(description="longest wait for a place before 429", gt=0, extra={"unit": "s"}),
    ] = 60.0
    max_body_bytes: Annotated[
        int,
        Meta(description="largest request body; more gets 413", ge=1, extra={"unit": "bytes"}),
    ] = 100 * _MIB
    routing_body_bytes: Annotated[
        int,
        Meta(
            description="largest body that is held to read its model, needed only where "
            "the model decides what happens to it; more gets 413",
            ge=1,
            extra={"unit": "bytes"},
        ),
    ] = 32 * _MIB
    routing_total_bytes: Annotated[
        int,
        Meta(
            description="bodies held at once for that, all told; more get 429",
            ge=1,
            extra={"unit": "bytes"},
        ),
    ] = 128 * _MIB
    connect_s: Annotated[
        float,
        Meta(description="time to connect to a model server", gt=0, extra={"unit": "s"}),
    ] = 5.0
    first_byte_s: Annotated[
        float,
        Meta(
            description="time until a model server's first header (models load); then 504",
            gt=0,
            extra={"unit": "s"},
        ),
    ] = 600.0
    drain_s: Annotated[
        float,
        Meta(
            description="time running answers get to finish when the agent stops",
            ge=0,
            extra={"unit": "s"},
        ),
    ] = 10.0


class Allowed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What passes besides the default calls."""

    groups: Annotated[
        tuple[str, ...],
        Meta(
            description="more calls: audio-translations, audio-speech, images, score, "
            "classify, tokenize, ollama"
        ),
    ] = ()
    cloud_models: Annotated[
        bool,
        Meta(
            description="let Ollama's cloud models pass, which send prompts from this host "
            "to a third party"
        ),
    ] = False


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings of one agent."""

    upstreams: Annotated[
        tuple[NamedUpstream, ...],
        Meta(description="model servers; when none is named they are looked for"),
    ] = ()
    upstream_key: Annotated[
        Secret | None,
        Meta(description="API key for named model servers that have no `key` of their own"),
    ] = None
    upstream_ca_file: Annotated[
        Path | None,
        Meta(description="PEM file of the CA for named https servers without a `ca_file`"),
    ] = None
    discovery: Annotated[Discovery, Meta(description="how they are looked for")] = Discovery()
    limits: Annotated[Limits, Meta(description="what one agent takes on")] = Limits()
    allowed: Annotated[Allowed, Meta(description="what passes besides the default")] = Allowed()
    log: Annotated[LogSettings, Meta(description="what is written to stderr")] = LogSettings(
        form="console"
    )
