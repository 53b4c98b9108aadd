"""The settings of the router and of the providers that it asks."""

from typing import Annotated, Final

from msgspec import Meta, field

from byoai_gateway.config_section import Section
from byoai_shared.secret import Secret

_SECONDS: Final = {"unit": "s"}
_FIRST_TOKEN: Final = "without a sign of life before the first token"  # noqa: S105 -- of text


class RouterSection(Section, frozen=True):
    """Limits in time, and when to stop asking."""

    connect_s: Annotated[float, Meta(description="to make a connection", gt=0, extra=_SECONDS)] = (
        5.0
    )
    silence_s: Annotated[
        float,
        Meta(
            description="without a byte from a provider whose streamed answer has begun",
            gt=0,
            extra=_SECONDS,
        ),
    ] = 300.0
    whole_answer_s: Annotated[
        float,
        Meta(description="without a byte of an answer that is not streamed", gt=0, extra=_SECONDS),
    ] = 300.0
    client_stall_s: Annotated[
        float,
        Meta(
            description="for how long a client may take nothing of its answer before it is cut",
            gt=0,
            extra=_SECONDS,
        ),
    ] = 300.0
    deadline_s: Annotated[
        float,
        Meta(description="until an answer has begun, all attempts together", gt=0, extra=_SECONDS),
    ] = 600.0
    longest_deadline_s: Annotated[
        float,
        Meta(
            description="the longest that a request may set for itself with x-byoai-timeout",
            gt=0,
            extra=_SECONDS,
        ),
    ] = 3600.0
    first_keep_alive_s: Annotated[
        float,
        Meta(
            description="until the first keep-alive comment of a stream without content yet",
            gt=0,
            extra=_SECONDS,
        ),
    ] = 3.0
    keep_alive_s: Annotated[
        float,
        Meta(
            description="between keep-alive comments after the first; 0 turns all of them off",
            ge=0,
            extra=_SECONDS,
        ),
    ] = 10.0
    breaker_failures: Annotated[
        int,
        Meta(description="failures in a row after which a user's provider is left alone", ge=1),
    ] = 5
    breaker_open_s: Annotated[
        float, Meta(description="for how long it is left alone", gt=0, extra=_SECONDS)
    ] = 30.0
    request_headers: Annotated[
        tuple[str, ...],
        Meta(
            description="headers of users' requests, in lower case, that every provider gets "
            "besides those that it always gets"
        ),
    ] = ()
    buffered_bytes: Annotated[
        int,
        Meta(
            description="request bodies and answers kept in memory by all requests together",
            ge=1,
            extra={"unit": "bytes"},
        ),
    ] = 512 * 1024 * 1024


class DefaultProviderSection(Section, frozen=True):
    """The operator's own OpenAI-compatible service; without base_url there is none."""

    base_url: Annotated[
        str | None, Meta(description="its address, up to and with /v1; https, or http inside")
    ] = None
    key: Annotated[Secret | None, Meta(description="the key it wants")] = None
    model: Annotated[
        str | None,
        Meta(description="asked for when a request names none, and when it falls back"),
    ] = None
    models: Annotated[
        dict[str, str],
        Meta(description="names that users may ask for = names it knows; empty: as they are"),
    ] = field(default_factory=dict[str, str])
    plans: Annotated[
        tuple[str, ...], Meta(description="plans that may use it; empty: every plan")
    ] = ()
    anthropic_messages: Annotated[
        bool, Meta(description="whether it has Anthropic's /messages")
    ] = False
    first_token_s: Annotated[float, Meta(description=_FIRST_TOKEN, gt=0, extra=_SECONDS)] = 300.0


class OpenRouterSection(Section, frozen=True):
    """OpenRouter, with each user's own key."""

    base_url: Annotated[str, Meta(description="its address, up to and with /v1")] = (
        "https://openrouter.ai/api/v1"
    )
    referer: Annotated[
        str | None, Meta(description="address of the application for attribution; or public.url")
    ] = None
    title: Annotated[str, Meta(description="name of the application for attribution")] = "BYOAI"
    models_fresh_s: Annotated[
        float, Meta(description="how old a list of models may be", gt=0, extra=_SECONDS)
    ] = 300.0
    first_token_s: Annotated[float, Meta(description=_FIRST_TOKEN, gt=0, extra=_SECONDS)] = 300.0


class SelfHostedSection(Section, frozen=True):
    """Users' own model servers."""

    urls_allowed: Annotated[
        bool, Meta(description="whether users may give an https address instead of a tunnel")
    ] = True
    url_networks: Annotated[
        tuple[str, ...],
        Meta(description="networks such an address may lead to besides the public ones (CIDR)"),
    ] = ()
    first_token_s: Annotated[float, Meta(description=_FIRST_TOKEN, gt=0, extra=_SECONDS)] = 300.0


class RecordsSection(Section, frozen=True):
    """How long records are kept."""

    usage_days: Annotated[
        int, Meta(description="records of requests", ge=1, extra={"unit": "days"})
    ] = 90
    audit_days: Annotated[
        int,
        Meta(description="records of changes, and revoked tunnels", ge=1, extra={"unit": "days"}),
    ] = 730
