"""The call that tests a provider's settings before they are saved.

A failed test is a good answer (200): the stages say what is wrong. Keys go in and never come out.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Final

from msgspec import Meta

from byoai_gateway.api.bodies import ApiKey, AskedByUser
from byoai_gateway.api.calls import Access, AnyCall, Call, Incoming
from byoai_gateway.api.field_errors import PRINTABLE
from byoai_gateway.choosing import Choices
from byoai_gateway.connection_test.report import Report, Stage, StageStatus
from byoai_gateway.connection_test.tester import ConnectionTester, Submitted
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.model_names import ModelName, wrong_names
from byoai_gateway.providers.address_guard import AddressGuard, AddressRefused
from byoai_gateway.refusals import invalid_fields, plan_required
from byoai_gateway.router.upstream import ProviderName
from byoai_gateway.status import Shown
from byoai_shared.secret import Secret

PATH: Final = "/api/ai/test-connection"

_KEY, _MODEL, _TUNNEL, _URL = "apiKey", "modelId", "tunnelId", "selfHostedUrl"
_KEYS_FROM: Final = "OpenRouter needs your API key; make one at https://openrouter.ai/settings/keys"
_TUNNELS_OWN: Final = "a tunnel has an authentication key of its own; leave this out"


class ConnectionTestAsked(AskedByUser, frozen=True, kw_only=True):
    """What to test: exactly this, and nothing that is saved. A field that is null is not given."""

    provider: ProviderName
    api_key: (
        Annotated[ApiKey, Meta(description="OpenRouter's, or that of `selfHostedUrl`")] | None
    ) = None
    model_id: ModelName | None = None
    tunnel_id: Annotated[str, Meta(max_length=32, pattern=PRINTABLE)] | None = None
    self_hosted_url: Annotated[str, Meta(min_length=1, max_length=2048)] | None = None

    def __repr__(self) -> str:
        return "ConnectionTestAsked(***)"


class StageShown(Shown, frozen=True):
    """What one stage found."""

    stage: Stage
    status: StageStatus
    latency_ms: Annotated[int | None, Meta(description="null for a stage that was skipped")]
    message: Annotated[str, Meta(description="what was found, and what to do if it failed")]
    code: Annotated[str | None, Meta(description="of what went wrong; null if nothing did")]


class ConnectionTested(Shown, frozen=True):
    """What a test found. There is every stage, in order; after one that failed all are skipped."""

    ok: bool
    provider: ProviderName
    model: Annotated[str | None, Meta(description="asked for an answer; null: the provider's own")]
    latency_ms: int
    stages: tuple[StageShown, ...]


class ConnectionTestCalls:
    """The call that tests settings."""

    def __init__(self, control: ControlPlane, choices: Choices) -> None:
        self._limits = control.limits
        self._rules = control.config.self_hosted
        self._guard = AddressGuard(control.config.self_hosted.url_networks)
        self._tester = ConnectionTester(choices, control.config.default_provider)

    def calls(self) -> Sequence[AnyCall]:
        """The one."""
        return (
            Call(
                *("POST", PATH, "Test provider settings before they are saved", Access.USER),
                *(ConnectionTestAsked, ConnectionTested, self.test),
                refusals=(
                    HTTPStatus.FORBIDDEN,
                    HTTPStatus.NOT_FOUND,
                    HTTPStatus.TOO_MANY_REQUESTS,
                    HTTPStatus.SERVICE_UNAVAILABLE,
                ),
                ends_with_client=True,
            ),
        )

    async def test(self, incoming: Incoming, body: ConnectionTestAsked) -> ConnectionTested:
        """Test what the body says."""
        user = incoming.user
        if body.provider is ProviderName.SELF_HOSTED and not user.may_self_host:
            raise plan_required()
        wrong = wrong_names({_MODEL: body.model_id}) | _wrong(body)
        wrong = wrong or self._wrong_url(body.self_hosted_url)
        if wrong:
            raise invalid_fields(wrong)
        await self._limits.connection_test(user.user_id)
        submitted = Submitted(
            provider=body.provider,
            key=None if body.api_key is None else Secret(body.api_key),
            model=body.model_id,
            tunnel_id=body.tunnel_id,
            url=body.self_hosted_url,
        )
        return _shown(await self._tester.test(user, submitted))

    def _wrong_url(self, url: str | None) -> dict[str, str]:
        if url is None:
            return {}
        if not self._rules.urls_allowed:
            return {_URL: "this gateway takes no addresses; register a tunnel instead"}
        try:
            self._guard.check_url(url)
        except AddressRefused as error:
            return {_URL: str(error)}
        return {}


def _wrong(body: ConnectionTestAsked) -> dict[str, str]:
    """What of the fields does not go together."""
    given = {_KEY: body.api_key, _TUNNEL: body.tunnel_id, _URL: body.self_hosted_url}
    named = {name for name, value in given.items() if value is not None}
    match body.provider:
        case ProviderName.DEFAULT:
            return dict.fromkeys(sorted(named), "the default provider takes none; leave it out")
        case ProviderName.OPENROUTER:
            wrong = dict.fromkeys(sorted(named - {_KEY}), "OpenRouter takes none; leave it out")
            return wrong if _KEY in named else {_KEY: _KEYS_FROM, **wrong}
        case ProviderName.SELF_HOSTED:
            return _wrong_server(named)


def _wrong_server(named: set[str]) -> dict[str, str]:
    wrong: dict[str, str] = {}
    if not named & {_TUNNEL, _URL}:
        wrong[_TUNNEL] = f"give the tunnel to test, or {_URL}"
    if named >= {_TUNNEL, _URL}:
        wrong[_URL] = "a model server is reached by tunnel or by address; leave one of them out"
    if named >= {_KEY, _TUNNEL}:
        wrong[_KEY] = _TUNNELS_OWN
    return wrong


def _shown(report: Report) -> ConnectionTested:
    return ConnectionTested(
        ok=report.is_ok,
        provider=report.provider,
        model=report.model,
        latency_ms=report.latency_ms,
        stages=tuple(
            StageShown(
                stage=it.stage,
                status=it.status,
                latency_ms=it.latency_ms,
                message=it.message,
                code=it.code,
            )
            for it in report.stages
        ),
    )
