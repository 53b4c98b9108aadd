"""A user's settings as values: what may be saved, and what the router goes by.

Pure: it knows neither the database nor HTTP. Its sentences are shown to people beside the field
that they are about.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, assert_never

from byoai_gateway.model_choice import UNNAMED
from byoai_gateway.providers.address_guard import origin_of
from byoai_gateway.router.upstream import ProviderName
from byoai_shared.secret import Secret

_SHOWN_FROM: Final = 16
"""Of a shorter key, four characters would give too much away, and its hash could be guessed."""


class Setting(StrEnum):
    """The settings, by the names that the API gives them."""

    PROVIDER = "aiProvider"
    OPENROUTER_KEY = "openRouterApiKey"
    OPENROUTER_MODEL = "openRouterModelPreference"
    SELF_HOSTED_MODEL = "selfHostedModelPreference"
    ALWAYS_MY_MODEL = "alwaysUseMyModel"
    FALLBACK = "fallbackToDefault"
    TUNNEL = "tunnelId"
    SELF_HOSTED_URL = "selfHostedUrl"
    SELF_HOSTED_KEY = "selfHostedAuthKey"


KEYS: Final = (Setting.OPENROUTER_KEY, Setting.SELF_HOSTED_KEY)
MODELS: Final = (Setting.OPENROUTER_MODEL, Setting.SELF_HOSTED_MODEL)

_FIELD_OF: Final[Mapping[str, str]] = {
    Setting.PROVIDER: "provider",
    Setting.OPENROUTER_KEY: "openrouter_key",
    Setting.OPENROUTER_MODEL: "openrouter_model",
    Setting.SELF_HOSTED_MODEL: "self_hosted_model",
    Setting.ALWAYS_MY_MODEL: "always_use_my_model",
    Setting.FALLBACK: "fallback_to_default",
    Setting.TUNNEL: "tunnel_id",
    Setting.SELF_HOSTED_URL: "self_hosted_url",
    Setting.SELF_HOSTED_KEY: "self_hosted_key",
}


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a user has chosen. Who never chose has the default provider and nothing else."""

    provider: ProviderName = ProviderName.DEFAULT
    openrouter_key: Secret | None = None
    openrouter_model: str | None = None
    fallback_to_default: bool = False
    tunnel_id: str | None = None
    self_hosted_url: str | None = None
    self_hosted_key: Secret | None = None
    self_hosted_model: str | None = None
    always_use_my_model: bool = False
    attention: Mapping[str, str] = field(default_factory=dict[str, str])
    """Settings that requests found not to work, each with the code that says why."""
    needs_reentry: frozenset[str] = frozenset()
    """Keys that are stored and do not open; they are None here."""

    @property
    def preferred_model(self) -> str | None:
        """The model that the user prefers at the provider that they chose."""
        match self.provider:
            case ProviderName.DEFAULT:
                name = None
            case ProviderName.OPENROUTER:
                name = self.openrouter_model
            case ProviderName.SELF_HOSTED:
                name = self.self_hosted_model
            case _:
                assert_never(self.provider)
        return None if name in UNNAMED else name

    def key(self, setting: Setting) -> Secret | None:
        """The key of a setting that is one."""
        return self.openrouter_key if setting is Setting.OPENROUTER_KEY else self.self_hosted_key

    def has_key(self, setting: Setting) -> bool:
        """Whether one is stored, be it one that does not open."""
        return self.key(setting) is not None or setting in self.needs_reentry

    def agrees_on(self, setting: str, other: "Preferences") -> bool:
        """Whether both have the same value of a setting."""
        name = _FIELD_OF[setting]
        return bool(getattr(self, name) == getattr(other, name))


@dataclass(frozen=True, slots=True)
class Attention:
    """Why a setting stopped working."""

    setting: str
    code: str
    since: int


@dataclass(frozen=True, slots=True)
class Saved:
    """A user's settings with what is known about them."""

    preferences: Preferences = Preferences()
    attention: tuple[Attention, ...] = ()
    """What requests noted, and after it what the database shows of the tunnel."""
    updated_at: int | None = None
    """None when the user never saved any."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What one save changes; None deletes, what is not in it stays."""

    plain: Mapping[Setting, str | bool | None] = field(default_factory=dict[Setting, str])
    keys: Mapping[Setting, Secret | None] = field(default_factory=dict[Setting, Secret])

    def __contains__(self, setting: Setting) -> bool:
        """Whether it says anything of the setting."""
        return setting in self.plain or setting in self.keys

    @property
    def settings(self) -> tuple[Setting, ...]:
        """All that it changes."""
        return (*self.plain, *self.keys)

    @property
    def emptied(self) -> tuple[Setting, ...]:
        """Those that it deletes."""
        return tuple(it for it, value in {**self.plain, **self.keys}.items() if value is None)

    def asks_for_self_hosting(self, now: Preferences) -> bool:
        """Whether it sets, and does not only delete, what self-hosting is for.

        A tunnel or address that is saved already may be sent along with what is changed.
        """
        given = {**self.plain, **self.keys}
        chosen = given.get(Setting.PROVIDER) == ProviderName.SELF_HOSTED
        return (
            chosen
            or given.get(Setting.TUNNEL) not in {None, now.tunnel_id}
            or given.get(Setting.SELF_HOSTED_URL) not in {None, now.self_hosted_url}
            or given.get(Setting.SELF_HOSTED_KEY) is not None
            or given.get(Setting.SELF_HOSTED_MODEL) not in {None, now.self_hosted_model}
        )


def conflicts(now: Preferences, changes: Changes) -> dict[Setting, str]:
    """What speaks against the changes, by setting, given what is saved already."""
    found: dict[Setting, str] = {}
    if changes.plain.get(Setting.PROVIDER) == ProviderName.OPENROUTER and not _will_have_key(
        now, changes, Setting.OPENROUTER_KEY
    ):
        found[Setting.OPENROUTER_KEY] = (
            "OpenRouter needs your API key; make one at https://openrouter.ai/keys and save it"
        )
    tunnel = changes.plain.get(Setting.TUNNEL, now.tunnel_id)
    url = changes.plain.get(Setting.SELF_HOSTED_URL, now.self_hosted_url)
    if tunnel is not None and url is not None:
        given, other = (
            (Setting.TUNNEL, Setting.SELF_HOSTED_URL)
            if Setting.TUNNEL in changes
            else (Setting.SELF_HOSTED_URL, Setting.TUNNEL)
        )
        if Setting.TUNNEL in changes or Setting.SELF_HOSTED_URL in changes:
            found[given] = (
                f"a model server is reached by tunnel or by address, not both; "
                f"set {other} to null first"
            )
    return found


def without_old_key(now: Preferences, changes: Changes) -> Changes:
    """Remove the stored key of a model server when the changes name another server.

    The key is write-only: who may change the address must not receive it there. A key that is
    saved along with the address belongs to it, and another path on the same server keeps the key.
    """
    is_kept = Setting.SELF_HOSTED_URL not in changes or _is_same_server(
        now.self_hosted_url, changes.plain[Setting.SELF_HOSTED_URL]
    )
    if is_kept or Setting.SELF_HOSTED_KEY in changes or not now.has_key(Setting.SELF_HOSTED_KEY):
        return changes
    return replace(changes, keys={**changes.keys, Setting.SELF_HOSTED_KEY: None})


def _is_same_server(one: str | None, other: object) -> bool:
    if one == other:
        return True
    if one is None or not isinstance(other, str):
        return False
    origin = origin_of(one)
    return origin is not None and origin == origin_of(other)


def _will_have_key(now: Preferences, changes: Changes, setting: Setting) -> bool:
    if setting in changes:
        return changes.keys[setting] is not None
    return now.has_key(setting)


def last_four(key: Secret) -> str | None:
    """The end of a key, to tell it from others by; None for one too short to show any of it."""
    text = key.reveal()
    return text[-4:] if len(text) >= _SHOWN_FROM else None


def fingerprint(user_id: str, key: Secret) -> str | None:
    """A name for a key that does not give it away and says nothing about other users' keys.

    None for a short one: whoever sees its name could find it by trying.
    """
    return own_name(user_id, key) if len(key.reveal()) >= _SHOWN_FROM else None


def own_name(user_id: str, key: Secret) -> str:
    """A name for a key of any length, to tell keys apart by in memory; never to be shown."""
    parts = (b"byoai.fingerprint.v1", user_id.encode(), key.reveal().encode())
    digest = hashlib.sha256(b"".join(len(it).to_bytes(4, "big") + it for it in parts))
    return digest.hexdigest()[:16]
