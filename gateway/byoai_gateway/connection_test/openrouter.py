"""The stages of a test with OpenRouter: a key's worth, its models, and an answer.

OpenRouter's label of a key, which shows parts of it, is not repeated.
"""

from dataclasses import dataclass

from byoai_gateway.connection_test.first_token import first_token
from byoai_gateway.connection_test.names import check_offered
from byoai_gateway.connection_test.report import StageSkipped
from byoai_gateway.providers.openrouter import OpenRouterUpstream
from byoai_gateway.providers.openrouter_account import OpenRouterAccounts
from byoai_gateway.providers.openrouter_answers import KeyLimits
from byoai_gateway.providers.openrouter_names import is_preset, without_routing
from byoai_gateway.router.failures import AttemptFailed, Failure, FailureKind
from byoai_gateway.router.upstream import ProviderName


@dataclass(slots=True)
class OpenRouterProbe:
    """Tries OpenRouter with one key; a `Probe`."""

    upstream: OpenRouterUpstream
    accounts: OpenRouterAccounts
    _limits: KeyLimits | None = None
    _refused: Failure | None = None

    @property
    def provider(self) -> ProviderName:
        """See `Probe`."""
        return ProviderName.OPENROUTER

    @property
    def model(self) -> str | None:
        """See `Probe`."""
        return self.upstream.preference.name

    async def reachable(self) -> str:
        """See `Probe`; an answer of any kind will do, and the next stage looks at it."""
        try:
            self._limits = await self.accounts.check_key(self.upstream.key)
        except AttemptFailed as error:
            if error.failure.kind is FailureKind.UNREACHABLE:
                raise
            # Not the error: it holds this frame, and would keep the probe in memory.
            self._refused = error.failure
        return "OpenRouter answers"

    async def authenticated(self) -> str:
        """See `Probe`."""
        if self._limits is None:
            assert self._refused is not None  # noqa: S101 -- the stage before set one of them
            raise AttemptFailed(self._refused)
        return f"the key works: {_worth(self._limits)}"

    async def has_model(self) -> str:
        """See `Probe`; a list that cannot be had is no fault of the settings."""
        if self.model is None:
            raise StageSkipped("no model is named, so OpenRouter takes your account's default")
        if is_preset(self.model):
            raise StageSkipped("this is a preset of your account, which no list of models names")
        try:
            found = await self.accounts.models(self.upstream.key)
        except AttemptFailed as error:
            if error.failure.kind is FailureKind.KEY_REFUSED:
                raise
            sentence = "OpenRouter's list of models cannot be had now; the answer will show"
            raise StageSkipped(sentence) from error
        sentence = check_offered(without_routing(self.model), found.names, "OpenRouter")
        if found.is_public:
            return f"{sentence}, by its list for everybody; your settings there may forbid it"
        return f"{sentence} for this key"

    async def answers(self) -> str:
        """See `Probe`."""
        await first_token(self.upstream, None)
        return "OpenRouter began an answer"


def _worth(limits: KeyLimits) -> str:
    if limits.is_spent:
        return "but nothing is left of its limit, so only free models may answer; raise it there"
    if limits.limit is None or limits.limit_remaining is None:
        worth = "it has no limit of its own"
    else:
        often = f" {limits.limit_reset}" if limits.limit_reset else ""
        worth = f"${limits.limit_remaining:.2f} of its{often} limit of ${limits.limit:.2f} are left"
    if limits.is_free_tier:
        return f"{worth}, and no credit was ever bought, so only free models answer"
    return worth
