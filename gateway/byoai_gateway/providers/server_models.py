"""Which model a user's own server is asked for, by tunnel or by address."""

from typing import assert_never

from byoai_gateway.model_choice import (
    AskFor,
    LeaveOut,
    ModelPreference,
    NotOffered,
    ServerOffer,
    asked_by,
    choose,
    needs_list,
)
from byoai_gateway.router.classify import model_not_found
from byoai_gateway.router.endpoints import BodyKind
from byoai_gateway.router.failures import AttemptFailed
from byoai_gateway.router.upstream import Call, ProviderName


def server_model(
    call: Call, named: str | None, preference: ModelPreference, offer: ServerOffer
) -> str | None:
    """Return the name to ask for; None to ask without one.

    Raises:
        AttemptFailed: the server does not offer the model.
    """
    if call.endpoint.body is BodyKind.NONE:
        return named
    outcome = choose(asked_by(call.endpoint, named), preference, offer)
    match outcome:
        case AskFor(name):
            return name
        case LeaveOut():
            return None
        case NotOffered(name, offered):
            is_preferred = name == preference.name and name != call.model
            failure = model_not_found(
                ProviderName.SELF_HOSTED, name, offered, is_preferred=is_preferred
            )
            raise AttemptFailed(failure)
        case _:
            assert_never(outcome)


def is_list_needed(call: Call, preference: ModelPreference) -> bool:
    """Return whether a server must be asked for its list before a call is sent to it."""
    if call.fields is None:
        return False
    return needs_list(asked_by(call.endpoint, call.model), preference)
