"""Who answers a user: their settings turned into providers that the router can ask.

A setting that cannot work is refused here in words that say what to change. Access is checked at
every request: a plan that lapsed stops routing and keeps the settings.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec

from byoai_gateway.config import GatewayConfig
from byoai_gateway.model_choice import UNKNOWN, ModelPreference, ServerOffer
from byoai_gateway.preferences.preferences import MODELS, Preferences, Setting, own_name
from byoai_gateway.preferences.store import PreferenceStore
from byoai_gateway.providers.address_guard import AddressGuard
from byoai_gateway.providers.compatible import CompatibleUpstream, UserModels, self_hosted_by_url
from byoai_gateway.providers.requests import passed_headers
from byoai_gateway.providers.tunnel import TunnelUpstream
from byoai_gateway.refusals import Refusal, plan_required
from byoai_gateway.reported_models import reported, reports
from byoai_gateway.router.ledger import Asked
from byoai_gateway.router.router import Choice
from byoai_gateway.router.upstream import ProviderName, Timers, Upstream
from byoai_gateway.users import User
from byoai_gateway.vault import KeysUnavailable
from byoai_gateway.ways import Ways

_SETTINGS_OF: Final[Mapping[ProviderName, tuple[Setting, ...]]] = {
    ProviderName.DEFAULT: (),
    ProviderName.OPENROUTER: (Setting.OPENROUTER_KEY, Setting.OPENROUTER_MODEL),
    ProviderName.SELF_HOSTED: (
        Setting.SELF_HOSTED_KEY,
        Setting.SELF_HOSTED_URL,
        Setting.TUNNEL,
        Setting.SELF_HOSTED_MODEL,
    ),
}
"""The settings that a provider's success speaks for."""


class SettingsUsed(msgspec.Struct, frozen=True):
    """The settings that one request goes by; what they came to is noted of these, not of newer.

    A request may end long after its user has saved another key.
    """

    preferences: PreferenceStore
    user_id: str
    saved: Preferences

    async def noticed(self, setting: str, code: str, model: str | None) -> None:
        """A provider refused because of this setting; one that is not set cannot be at fault.

        Nor can the preferred model be, when the provider was asked for another.
        """
        if setting in MODELS and model != self.saved.preferred_model:
            return
        if _is_set(self.saved, setting):
            await self.preferences.note_attention(self.user_id, setting, code, self.saved)

    def worked(self, asked: Asked) -> Coroutine[Any, Any, None] | None:
        """A provider answered; None if nothing was noted of its settings when they were chosen."""
        if not self.saved.attention:
            return None
        settings = tuple(
            it
            for it in _SETTINGS_OF[asked.provider]
            if it not in MODELS or asked.model == self.saved.preferred_model
        )
        if self.saved.attention.keys().isdisjoint(settings):
            return None
        return self.preferences.clear_attention(self.user_id, settings, self.saved)


class Choices:
    """Turns settings into providers."""

    def __init__(self, config: GatewayConfig, preferences: PreferenceStore, ways: Ways) -> None:
        self._config = config
        self._preferences = preferences
        self._ways = ways
        self._guard = AddressGuard(config.self_hosted.url_networks)
        self._passed = passed_headers(config.router.request_headers)
        default = config.default_provider
        self._operators_names = frozenset(filter(None, (*default.models, default.model)))

    async def choose(self, user: User, again: Callable[[], Awaitable[User]]) -> Choice:
        """The user's own choice; `again` checks who asks once more, before a fallback.

        Raises:
            Refusal: what they chose cannot be used.
        """
        saved = await self._preferences.of(user.user_id)

        async def fall_back() -> Upstream | None:
            try:
                return self._fallback_for(await again())
            except Refusal:
                # The token is over: what is told is why the provider did not answer.
                return None

        may_fall_back = saved.fallback_to_default and saved.provider is not ProviderName.DEFAULT
        return Choice(
            await self.upstream(user, saved),
            fall_back if may_fall_back else None,
            SettingsUsed(self._preferences, user.user_id, saved),
        )

    @property
    def ways(self) -> Ways:
        """The ways that it chooses among."""
        return self._ways

    async def upstream(self, user: User, saved: Preferences) -> Upstream:
        """The provider that these settings choose, saved or not.

        Raises:
            Refusal: what they choose cannot be used.
        """
        match saved.provider:
            case ProviderName.DEFAULT:
                return self._default_for(user)
            case ProviderName.OPENROUTER:
                return self._openrouter(saved)
            case ProviderName.SELF_HOSTED:
                return await self._self_hosted(user, saved)

    def _default_for(self, user: User) -> Upstream:
        if not self._ways.default.is_configured:
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "no_default_provider",
                "this service has no AI of its own; choose OpenRouter or your own model server "
                "in the settings",
            )
        if not self._ways.default.admits(user.plan):
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                "plan_required",
                "your plan does not include this service's own AI; choose another provider",
            )
        return self._ways.default.upstream(is_fallback=False)

    def _fallback_for(self, user: User) -> Upstream | None:
        if not self._ways.default.is_configured or not self._ways.default.admits(user.plan):
            return None
        return self._ways.default.upstream(is_fallback=True)

    def _openrouter(self, saved: Preferences) -> Upstream:
        if saved.openrouter_key is None:
            raise _key_missing(saved, Setting.OPENROUTER_KEY, "OpenRouter key")
        key = saved.openrouter_key
        offer = self._ways.accounts.offer(key)
        return self._ways.openrouter.upstream(key, self._preference(saved), offer)

    async def _self_hosted(self, user: User, saved: Preferences) -> Upstream:
        if not user.may_self_host:
            raise plan_required()
        timers = self._timers(self._config.self_hosted.first_token_s)
        if saved.self_hosted_url is not None:
            return self._by_url(user, saved, saved.self_hosted_url, timers)
        route = await self._ways.routes.route(user.user_id, saved.tunnel_id)
        if route is None:
            raise _no_tunnel() if saved.tunnel_id is None else _tunnel_is_gone()
        return TunnelUpstream(
            route,
            self._ways.tunnels,
            timers,
            self._passed,
            preference=self._preference(saved),
            statuses=self._ways.presence.statuses_of,
        )

    async def offer(self, user: User, saved: Preferences) -> ServerOffer:
        """What is known of the models of the user's own server, without asking it."""
        if saved.self_hosted_url is not None:
            return self._ways.lists.offer(list_name(user.user_id, saved))
        try:
            route = await self._ways.routes.route(user.user_id, saved.tunnel_id)
        except KeysUnavailable:
            return UNKNOWN
        if route is None:
            return UNKNOWN
        return reported(reports(self._ways.presence.statuses_of(route.tunnel_id)), route.model)

    def _preference(self, saved: Preferences) -> ModelPreference:
        return ModelPreference(
            saved.preferred_model, saved.always_use_my_model, self._operators_names
        )

    def _by_url(
        self, user: User, saved: Preferences, url: str, timers: Timers
    ) -> CompatibleUpstream:
        if not self._config.self_hosted.urls_allowed:
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                "self_hosted_url_not_allowed",
                "this service reaches model servers by tunnel only; register one",
            )
        if Setting.SELF_HOSTED_KEY in saved.needs_reentry:
            raise _key_missing(saved, Setting.SELF_HOSTED_KEY, "model server's key")
        models = UserModels(
            self._preference(saved), self._ways.lists, list_name(user.user_id, saved)
        )
        return self_hosted_by_url(
            url,
            saved.self_hosted_key,
            self._guard,
            self._ways.outbound,
            timers,
            self._passed,
            models=models,
        )

    def _timers(self, first_token_s: float) -> Timers:
        router = self._config.router
        return Timers(first_token_s, router.silence_s, router.whole_answer_s)


def list_name(user_id: str, saved: Preferences) -> tuple[str, ...]:
    """What the list of a user's server is kept by: another address or key is another list."""
    key = saved.self_hosted_key
    key_name = "" if key is None else own_name(user_id, key)
    return (user_id, saved.self_hosted_url or "", key_name)


def _is_set(saved: Preferences, setting: str) -> bool:
    match setting:
        case Setting.OPENROUTER_MODEL:
            return saved.openrouter_model is not None
        case Setting.SELF_HOSTED_MODEL:
            return saved.self_hosted_model is not None
        case Setting.SELF_HOSTED_KEY:
            return saved.self_hosted_key is not None and saved.self_hosted_url is not None
        case Setting.SELF_HOSTED_URL:
            return saved.self_hosted_url is not None
        case _:
            return True


def _key_missing(saved: Preferences, setting: Setting, what: str) -> Refusal:
    if setting in saved.needs_reentry:
        message = f"your {what} can no longer be read; enter it again in the settings"
        return Refusal(HTTPStatus.FORBIDDEN, "needs_reentry", message, param=setting.value)
    message = f"there is no {what}; enter it in the settings"
    return Refusal(HTTPStatus.FORBIDDEN, "key_missing", message, param=setting.value)


def _no_tunnel() -> Refusal:
    message = (
        "you have no tunnel that can be used; register one with POST /api/tunnel/register, or see "
        "at GET /api/tunnel what became of it"
    )
    return Refusal(HTTPStatus.NOT_FOUND, "tunnel_not_found", message)


def _tunnel_is_gone() -> Refusal:
    message = (
        "there is no such tunnel, or it was removed; GET /api/tunnel shows those that you have"
    )
    return Refusal(HTTPStatus.NOT_FOUND, "tunnel_not_found", message, param=Setting.TUNNEL.value)
