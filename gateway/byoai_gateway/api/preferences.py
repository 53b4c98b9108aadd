"""A user's choice of provider: shown, and changed field by field.

Keys go in and never come out: what is shown of one is its end and a fingerprint.
"""

from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from byoai_gateway.absence import Absence
from byoai_gateway.api.bodies import ApiKey, AskedByUser
from byoai_gateway.api.calls import Access, AnyCall, Call, Incoming, NoBody
from byoai_gateway.api.field_errors import PRINTABLE
from byoai_gateway.choosing import Choices
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.model_choice import ServerOffer
from byoai_gateway.model_names import ModelName, wrong_names
from byoai_gateway.preferences.preferences import (
    KEYS,
    MODELS,
    Attention,
    Changes,
    Preferences,
    Saved,
    Setting,
    fingerprint,
    last_four,
)
from byoai_gateway.providers.address_guard import AddressGuard, AddressRefused
from byoai_gateway.refusals import Refusal, invalid_fields, plan_required
from byoai_gateway.router.upstream import ProviderName
from byoai_gateway.status import Shown, absence_of
from byoai_gateway.users import User
from byoai_shared.secret import Secret

PATH: Final = "/api/user-preferences/ai-provider"

_SENTENCES: Final = {
    "key_refused": "the provider refused this key; save a valid one",
    "credits_spent": "the provider says that the credits of this key are spent; add some there",
    "forbidden": "the provider does not let this key do what was asked; look at its settings there",
    "model_not_found": "the provider does not have this model, or not for this key; choose another",
    "address_refused": "the address leads where this service does not go; use one on the public "
    "internet, or a tunnel",
    "loop_detected": "the address leads back to a gateway; give the model server's own",
    "address_changed": "this key was removed because selfHostedUrl now names another server; if "
    "that server needs a key, enter it",
    "needs_reentry": "this key can no longer be read here; enter it again",
    "tunnel_not_found": "this tunnel was removed; choose another, or register a new one",
    "agent_locked": "all agents of this tunnel are locked because old keys of theirs were used "
    "again, as a copy of their state would do; unlock them on the tunnel's page, or join their "
    "hosts again",
    "missing": "the chosen provider needs this; enter it, or choose another provider",
}
_ANY: Final = "this setting stopped working; check it and save it anew"


class PreferencesAsked(AskedByUser, frozen=True, kw_only=True):
    """What to change: a field that is left out stays, null deletes."""

    ai_provider: ProviderName | UnsetType = UNSET
    open_router_api_key: ApiKey | UnsetType | None = UNSET
    open_router_model_preference: ModelName | UnsetType | None = UNSET
    self_hosted_model_preference: Annotated[
        ModelName | UnsetType | None,
        Meta(
            description="the model of the user's own server for requests that name none; null: the "
            "first that fits"
        ),
    ] = UNSET
    always_use_my_model: Annotated[
        bool | UnsetType,
        Meta(description="whether the preferred model answers whatever name a request gives"),
    ] = UNSET
    fallback_to_default: bool | UnsetType = UNSET
    tunnel_id: Annotated[str, Meta(max_length=32, pattern=PRINTABLE)] | UnsetType | None = UNSET
    self_hosted_url: Annotated[
        Annotated[str, Meta(min_length=1, max_length=2048)] | UnsetType | None,
        Meta(
            description="another scheme, host or port removes the stored `selfHostedAuthKey`, "
            "unless the same call gives a new one; `needsAttention` then says so"
        ),
    ] = UNSET
    self_hosted_auth_key: ApiKey | UnsetType | None = UNSET

    def __repr__(self) -> str:
        return "PreferencesAsked(***)"


class KeyShown(Shown, frozen=True):
    """A key that is stored."""

    last_four: Annotated[str | None, Meta(description="null for a key of fewer than 16 characters")]
    fingerprint: Annotated[
        str | None,
        Meta(
            description="changes with the key; null for a key of fewer than 16 characters, which "
            "could be guessed from it"
        ),
    ]
    needs_reentry: Annotated[bool, Meta(description="it can no longer be read: enter it again")]


class AttentionShown(Shown, frozen=True):
    """A setting that does not work. Times are Unix seconds."""

    setting: str
    code: str
    message: str
    since: int


class PreferencesShown(Shown, frozen=True):
    """The user's settings; nothing but the default provider when none were ever saved."""

    ai_provider: ProviderName
    open_router_api_key: KeyShown | None
    open_router_model_preference: str | None
    self_hosted_model_preference: str | None
    always_use_my_model: bool
    fallback_to_default: bool
    tunnel_id: str | None
    self_hosted_url: str | None
    self_hosted_auth_key: KeyShown | None
    needs_attention: tuple[AttentionShown, ...]
    updated_at: int | None


class PreferenceCalls:
    """The calls about a user's own settings."""

    def __init__(self, control: ControlPlane, choices: Choices) -> None:
        self._choices = choices
        self._store = control.preferences
        self._registry = control.registry
        self._clock = control.clock
        self._rules = control.config.self_hosted
        self._guard = AddressGuard(control.config.self_hosted.url_networks)

    def calls(self) -> Sequence[AnyCall]:
        """Both of them."""
        return (
            Call(
                *("GET", PATH, "Show the user's provider settings", Access.USER),
                *(NoBody, PreferencesShown, self.show),
            ),
            Call(
                *("POST", PATH, "Change some of the user's provider settings", Access.USER),
                *(PreferencesAsked, PreferencesShown, self.save),
                refusals=(HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND),
            ),
        )

    async def show(self, incoming: Incoming, _: NoBody) -> PreferencesShown:
        """Show what is saved."""
        return await self._shown(incoming.user, await self._store.show(incoming.user.user_id))

    async def save(self, incoming: Incoming, body: PreferencesAsked) -> PreferencesShown:
        """Save what the body names, all of it or nothing."""
        changes = _changes(body)
        names: dict[str, str | None] = {
            it: name for it in MODELS if isinstance(name := changes.plain.get(it), str)
        }
        if wrong := wrong_names(names):
            raise invalid_fields(wrong)
        user_id = incoming.user.user_id
        if not incoming.user.may_self_host:
            now = (await self._store.show(user_id)).preferences
            if changes.asks_for_self_hosting(now):
                raise plan_required()
        url = changes.plain.get(Setting.SELF_HOSTED_URL)
        if isinstance(url, str):
            self._check_url(url)
        return await self._shown(incoming.user, await self._store.save(user_id, changes))

    async def _shown(self, user: User, saved: Saved) -> PreferencesShown:
        now = saved.preferences
        if now.provider is ProviderName.SELF_HOSTED and now.self_hosted_model is not None:
            saved = _with_model_judged(saved, await self._choices.offer(user, now))
        absence = None
        if now.provider is ProviderName.SELF_HOSTED and now.self_hosted_url is None:
            absence = await self._absence(user.user_id, now.tunnel_id)
        return _shown(user.user_id, saved, _of_tunnel(saved, absence, self._clock()))

    async def _absence(self, user_id: str, tunnel_id: str | None) -> Absence | None:
        """Why no agent of the tunnel that requests go to can be reached; None if one can."""
        presence = self._choices.ways.presence
        tunnels = [
            it
            for it in await self._registry.tunnels_of(user_id)
            if tunnel_id in {None, it.tunnel_id}
        ]
        if not tunnels or any(any(presence.agents_of(it.tunnel_id)) for it in tunnels):
            return None
        agents = await self._registry.agents_of(tunnels[0].tunnel_id)
        return absence_of(tunnels[0], agents, presence)

    def _check_url(self, url: str) -> None:
        if not self._rules.urls_allowed:
            raise _wrong_url("this gateway takes no addresses; register a tunnel instead")
        try:
            self._guard.check_url(url)
        except AddressRefused as error:
            raise _wrong_url(str(error)) from error


def _wrong_url(sentence: str) -> Refusal:
    return invalid_fields({str(Setting.SELF_HOSTED_URL): sentence})


def _changes(body: PreferencesAsked) -> Changes:
    given = {
        Setting(field.encode_name): value
        for field in msgspec.structs.fields(body)
        if field.name != "user_id" and (value := getattr(body, field.name)) is not UNSET
    }
    return Changes(
        plain={setting: value for setting, value in given.items() if setting not in KEYS},
        keys={
            setting: None if value is None else Secret(value)
            for setting, value in given.items()
            if setting in KEYS
        },
    )


def _with_model_judged(saved: Saved, offer: ServerOffer) -> Saved:
    """Let what the server offers now decide about the preferred model, if it is known."""
    setting, name = Setting.SELF_HOSTED_MODEL, saved.preferences.self_hosted_model
    if name is None or not offer.is_complete:
        return saved
    noted = {it.setting: it for it in saved.attention}
    missing = Attention(setting, "model_not_found", saved.updated_at or 0)
    before = noted.pop(setting, missing)
    kept = tuple(noted.values())
    return replace(saved, attention=kept if offer.has(name) else (*kept, before))


def _of_tunnel(saved: Saved, absence: Absence | None, now: float) -> tuple[AttentionShown, ...]:
    if absence is None or any(it.setting == Setting.TUNNEL for it in saved.attention):
        return ()
    since = saved.updated_at or 0 if absence.left_s is None else int(now - absence.left_s)
    return (
        AttentionShown(
            setting=Setting.TUNNEL, code=absence.code, message=absence.message, since=since
        ),
    )


def _shown(user_id: str, saved: Saved, of_tunnel: tuple[AttentionShown, ...]) -> PreferencesShown:
    now = saved.preferences
    return PreferencesShown(
        ai_provider=now.provider,
        open_router_api_key=_key_shown(user_id, now, Setting.OPENROUTER_KEY),
        open_router_model_preference=now.openrouter_model,
        self_hosted_model_preference=now.self_hosted_model,
        always_use_my_model=now.always_use_my_model,
        fallback_to_default=now.fallback_to_default,
        tunnel_id=now.tunnel_id,
        self_hosted_url=now.self_hosted_url,
        self_hosted_auth_key=_key_shown(user_id, now, Setting.SELF_HOSTED_KEY),
        needs_attention=(*_all_attention(saved), *of_tunnel),
        updated_at=saved.updated_at,
    )


def _key_shown(user_id: str, now: Preferences, setting: Setting) -> KeyShown | None:
    if setting in now.needs_reentry:
        return KeyShown(last_four=None, fingerprint=None, needs_reentry=True)
    key = now.key(setting)
    if key is None:
        return None
    return KeyShown(
        last_four=last_four(key), fingerprint=fingerprint(user_id, key), needs_reentry=False
    )


def _all_attention(saved: Saved) -> tuple[AttentionShown, ...]:
    """What was noticed, and what can be seen in the settings themselves."""
    now, since = saved.preferences, saved.updated_at or 0
    found = {it.setting: it for it in saved.attention}
    key = Setting.OPENROUTER_KEY
    if now.provider is ProviderName.OPENROUTER and not now.has_key(key):
        found[key] = Attention(key, "missing", since)
    found |= {it: Attention(it, "needs_reentry", since) for it in now.needs_reentry}
    return tuple(
        AttentionShown(
            setting=it.setting, code=it.code, message=_SENTENCES.get(it.code, _ANY), since=it.since
        )
        for _, it in sorted(found.items())
    )
