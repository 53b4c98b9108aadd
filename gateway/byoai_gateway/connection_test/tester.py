"""Tests what a user submitted, before any of it is saved: that, and nothing that is saved already.

The provider is made as routing makes it, so the test goes the way that requests will go: the same
guard, the same headers, the same rule for models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from byoai_gateway.choosing import Choices
from byoai_gateway.connection_test.course import LIMITS_S, Probe, run
from byoai_gateway.connection_test.openrouter import OpenRouterProbe
from byoai_gateway.connection_test.report import Report, Stage, StageFailed
from byoai_gateway.connection_test.servers import AddressProbe, DefaultProbe, TunnelProbe
from byoai_gateway.preferences.preferences import Preferences
from byoai_gateway.provider_config import DefaultProviderSection
from byoai_gateway.providers.openrouter import OpenRouterUpstream
from byoai_gateway.providers.tunnel import TunnelUpstream
from byoai_gateway.refusals import Refusal
from byoai_gateway.router.upstream import ProviderName
from byoai_gateway.users import User
from byoai_shared.secret import Secret

_NO_DEFAULT: Final = "no_default_provider"


@dataclass(frozen=True, slots=True)
class Submitted:
    """A configuration as somebody might save it; None is not given."""

    provider: ProviderName
    key: Secret | None = None
    model: str | None = None
    tunnel_id: str | None = None
    url: str | None = None

    @property
    def preferences(self) -> Preferences:
        """The same, as if it alone were saved."""
        is_openrouter = self.provider is ProviderName.OPENROUTER
        return Preferences(
            provider=self.provider,
            openrouter_key=self.key if is_openrouter else None,
            openrouter_model=self.model if is_openrouter else None,
            tunnel_id=self.tunnel_id,
            self_hosted_url=self.url,
            self_hosted_key=None if is_openrouter else self.key,
            self_hosted_model=None if is_openrouter else self.model,
        )


class ConnectionTester:
    """Tests configurations for users."""

    def __init__(
        self,
        choices: Choices,
        default: DefaultProviderSection,
        limits_s: Mapping[Stage, float] = LIMITS_S,
    ) -> None:
        self._choices = choices
        self._default = default
        self._limits_s = limits_s

    async def test(self, user: User, submitted: Submitted) -> Report:
        """Run every stage that makes sense; what does not work stands in the report.

        Raises:
            Refusal: the user may not use this, or has no such tunnel; nothing was dialled.
        """
        probe = await self._probe(user, submitted)
        return await run(probe, submitted.key, self._limits_s)

    async def _probe(self, user: User, submitted: Submitted) -> Probe:
        try:
            upstream = await self._choices.upstream(user, submitted.preferences)
        except Refusal as refusal:
            if refusal.code == _NO_DEFAULT and refusal.status == HTTPStatus.SERVICE_UNAVAILABLE:
                return _Absent(submitted.provider, str(refusal))
            raise
        match upstream:
            case OpenRouterUpstream():
                return OpenRouterProbe(upstream, self._choices.ways.accounts)
            case TunnelUpstream():
                return TunnelProbe(upstream, submitted.model)
            case _ if submitted.provider is ProviderName.DEFAULT:
                return DefaultProbe(upstream, self._default, submitted.model)
            case _:
                has_key = submitted.key is not None
                return AddressProbe(upstream, submitted.model, has_key=has_key)


@dataclass(frozen=True, slots=True)
class _Absent:
    """A provider that there is not; a `Probe` that ends with its first stage."""

    provider: ProviderName
    sentence: str
    model: str | None = None

    async def reachable(self) -> str:
        """See `Probe`."""
        raise StageFailed(_NO_DEFAULT, self.sentence)

    authenticated = has_model = answers = reachable
