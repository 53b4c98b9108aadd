"""What a user may choose from: the models that their provider offers."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from byoai_gateway.api.bodies import AskedByUser
from byoai_gateway.api.calls import Access, AnyCall, Call, Incoming
from byoai_gateway.choosing import Choices
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.offered_models import ModelsOffered, OfferedModels
from byoai_gateway.router.upstream import ProviderName


class ModelsAsked(AskedByUser, frozen=True, kw_only=True):
    """Whose models."""

    provider: Annotated[
        ProviderName | UnsetType,
        Meta(description="to look at another provider than the chosen one before choosing it"),
    ] = UNSET


class ModelCalls:
    """The call about models."""

    def __init__(self, control: ControlPlane, choices: Choices) -> None:
        self._limits = control.limits
        self._offered = OfferedModels(control, choices)

    def calls(self) -> Sequence[AnyCall]:
        """It."""
        return (
            Call(
                *("GET", "/api/ai/models", "List the models of the user's provider", Access.USER),
                *(ModelsAsked, ModelsOffered, self.list_all),
                refusals=(
                    HTTPStatus.FORBIDDEN,
                    HTTPStatus.TOO_MANY_REQUESTS,
                    HTTPStatus.SERVICE_UNAVAILABLE,
                ),
            ),
        )

    async def list_all(self, incoming: Incoming, asked: ModelsAsked) -> ModelsOffered:
        """List what may be asked for; it counts as a request, because somebody may be asked."""
        user = incoming.user
        provider = None if asked.provider is UNSET else asked.provider
        async with self._limits.request(user.user_id):
            return await self._offered.of(user, provider)
