"""What a gateway cannot do with its settings, though it starts with them.

Pure. Each warning names its setting; the log, `/readyz` and `byoai-gateway check` show the same.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from byoai_gateway.config import GatewayConfig
from byoai_gateway.router.keeping import SHARES, share_of
from byoai_shared.base_urls import corrected, has_version


@dataclass(frozen=True, slots=True)
class SettingWarning:
    """A setting that is valid, and probably not what the operator wants."""

    event: str
    """Its name in the log."""
    setting: str
    reason: str
    next: str
    """What to do."""

    def __str__(self) -> str:
        return f"{self.setting}: {self.reason}; {self.next}"


def config_warnings(config: GatewayConfig) -> tuple[SettingWarning, ...]:
    """Return the warnings about the settings, in the order of the settings."""
    found: list[SettingWarning] = []
    if config.users.secret is None and config.users.jwks_url is None:
        found.append(
            SettingWarning(
                "users.unset",
                "users",
                "no user can sign in",
                "set users.secret_file or users.jwks_url",
            )
        )
    elif config.users.audience is None:
        found.append(
            SettingWarning(
                "users.audience_unset",
                "users.audience",
                "every token that the main application signs with this key is accepted, also one "
                "that it issued for another service, which could then act as its users here",
                "set users.audience to the `aud` of the tokens that are meant for this gateway",
            )
        )
    if not config.relays:
        found.append(
            SettingWarning(
                "relays.unset",
                "relays",
                "no agent can be reached",
                "add [[relays]] with address and gateway_address",
            )
        )
    share = share_of(config.router.buffered_bytes)
    if config.limits.max_body_bytes > share:
        found.append(
            SettingWarning(
                "limits.max_body_above_share",
                "limits.max_body_bytes",
                f"one request keeps {share} bytes at most, a quarter of router.buffered_bytes, so "
                "larger bodies that have to be kept are refused with 413 memory_share_exceeded",
                f"set limits.max_body_bytes to {share} or less, or router.buffered_bytes to "
                f"{config.limits.max_body_bytes * SHARES} or more",
            )
        )
    if config.default_provider.base_url is None:
        found.append(
            SettingWarning(
                "default_provider.unset",
                "default_provider.base_url",
                "there is no default provider: users who chose no other one are refused with 503, "
                "and there is no fallback",
                "set default_provider.base_url and default_provider.key_file",
            )
        )
    return (*found, *_of_addresses(config))


def _of_addresses(config: GatewayConfig) -> tuple[SettingWarning, ...]:
    addresses = {
        "default_provider.base_url": config.default_provider.base_url,
        "openrouter.base_url": config.openrouter.base_url,
    }
    return tuple(
        SettingWarning(
            "provider.unversioned",
            setting,
            "the address contains no version, which is unusual",
            f"if requests fail with 404, write {corrected(urlsplit(url))}",
        )
        for setting, url in addresses.items()
        if url is not None and not has_version(urlsplit(url).path)
    )
