"""Which model a provider is asked for, given the name in a request: one rule for all providers.

A name that the provider offers is passed on. No name, `default` and the operator's own names mean
the model that the user prefers there; without a preference the first that the provider offers and
that can do what the endpoint needs. Any other name is refused with the names that are offered,
unless the user chose that their model always answers.

Pure: what a provider offers, or that it is not known, comes in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import msgspec

from byoai_gateway.router.endpoints import BodyKind, Dialect, Endpoint
from byoai_shared.model_skills import Skill, skill_of

UNNAMED: Final = frozenset({None, "", "default"})
"""How a request leaves the model to the provider."""
_LATEST: Final = ":latest"
"""The tag that Ollama adds to a name without one."""
_SKILLS: Final[Mapping[str, Skill]] = {
    "embeddings": Skill.EMBEDDINGS,
    "rerank": Skill.RERANKING,
    "score": Skill.RERANKING,
    "audio": Skill.AUDIO,
    "images": Skill.IMAGES,
    "messages": Skill.TEXT,
}
"""By the first part of an endpoint's path, where the dialect does not tell."""


class Asked(NamedTuple):
    """What a request says of its model."""

    name: str | None
    skill: Skill | None
    """What the endpoint needs of a model; None: any model may do."""
    is_fixed: bool = False
    """Whether the name is part of a form, which is not rewritten."""


@dataclass(frozen=True, slots=True)
class ModelPreference:
    """What the user and the operator said of models."""

    name: str | None = None
    """The model that the user prefers at this provider."""
    always_answers: bool = False
    """Whether it answers whatever name a request gives."""
    operators: frozenset[str] = frozenset()
    """Names of the operator's own provider, which mean nothing to others."""


class Offer(Protocol):
    """What is known of a provider's models."""

    @property
    def names(self) -> Sequence[str]:
        """Those that it lists, in its order; empty if that is not known."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether there are no others."""
        ...

    @property
    def stand_in(self) -> str | None:
        """The model for requests that name none, if the user prefers none."""
        ...

    @property
    def is_authoritative(self) -> bool:
        """Whether the list decides about the preferred model, and replaces a missing one.

        A provider that has models which it does not list, and a default of its own, does both
        by itself.
        """
        ...

    def has(self, name: str) -> bool:
        """Whether a model of this name is listed."""
        ...

    def may_have(self, name: str) -> bool:
        """Whether a name that is not listed may be one of the provider's all the same."""
        ...


@dataclass(frozen=True, slots=True)
class ServerOffer:
    """What is known of the models of a user's own server."""

    names: tuple[str, ...] = ()
    is_complete: bool = False
    stand_in: str | None = None
    """The name that a tunnel was registered with."""

    @property
    def is_authoritative(self) -> bool:
        """See `Offer`."""
        return True

    def has(self, name: str) -> bool:
        """See `Offer`; Ollama lets callers leave out `:latest`."""
        return listed_as(name, self.names) is not None

    def may_have(self, name: str) -> bool:
        """See `Offer`; a list that was cut, or could not be had, rules out no name."""
        del name
        return not self.is_complete


UNKNOWN: Final = ServerOffer()
"""A server whose list is not known."""


class AskFor(msgspec.Struct, frozen=True):
    """Ask the provider for this model."""

    name: str


@dataclass(frozen=True, slots=True)
class LeaveOut:
    """Ask without a model: the provider takes its own, or the form stays as it is."""


@dataclass(frozen=True, slots=True)
class NotOffered:
    """Do not ask: the provider does not have this model, but these."""

    name: str
    offered: tuple[str, ...]


Outcome = AskFor | LeaveOut | NotOffered


def asked_by(endpoint: Endpoint, name: str | None) -> Asked:
    """Return what a request to an endpoint says of its model."""
    if endpoint.dialect is not Dialect.PLAIN:
        return Asked(name, Skill.TEXT)
    part = endpoint.path.lstrip("/").partition("/")[0]
    return Asked(name, _SKILLS.get(part), endpoint.body is BodyKind.MULTIPART)


def choose(asked: Asked, preference: ModelPreference, offer: Offer) -> Outcome:
    """Apply the rule."""
    if asked.is_fixed:
        return _choose_for_form(asked.name, offer)
    name = asked.name
    if name is None or name in UNNAMED:
        return preferred(asked.skill, preference, offer)
    if preference.always_answers and _suits(preference.name, asked.skill):
        return preferred(asked.skill, preference, offer)
    if offer.has(name):
        return AskFor(name)
    if name in preference.operators or preference.always_answers:
        return preferred(asked.skill, preference, offer)
    if offer.may_have(name):
        return AskFor(name)
    if not offer.is_complete:
        return preferred(asked.skill, preference, offer)
    return NotOffered(name, tuple(offer.names))


def preferred(skill: Skill | None, preference: ModelPreference, offer: Offer) -> Outcome:
    """Return what a request that names no model is answered by."""
    suiting = [it for it in offer.names if _suits(it, skill)]
    if preference.name is not None and (
        _suits(preference.name, skill) or (offer.is_authoritative and not suiting)
    ):
        return _ask_for_preferred(preference.name, offer)
    if not offer.is_authoritative:
        return LeaveOut()
    registered = listed_as(offer.stand_in, suiting or offer.names)
    first = registered or next(iter(suiting or offer.names), None) or offer.stand_in
    return LeaveOut() if first is None else AskFor(first)


def needs_list(asked: Asked, preference: ModelPreference) -> bool:
    """Return whether only the server's list can tell which model a request means.

    A preferred model that cannot do what the endpoint needs answers for want of a list only.
    """
    outcome = choose(asked, preference, UNKNOWN)
    if isinstance(outcome, AskFor) and outcome.name != asked.name:
        return not _suits(outcome.name, asked.skill)
    return isinstance(outcome, LeaveOut)


def listed_as(name: str | None, names: Sequence[str]) -> str | None:
    """Return the name by which a list has a model, or None if it does not have it."""
    if name is None or name in names:
        return name
    tagged = name + _LATEST
    return tagged if tagged in names else None


def _ask_for_preferred(name: str, offer: Offer) -> Outcome:
    if offer.is_authoritative and offer.is_complete and not offer.has(name):
        return NotOffered(name, tuple(offer.names))
    return AskFor(name)


def _choose_for_form(name: str | None, offer: Offer) -> Outcome:
    if not name:
        return LeaveOut()
    if offer.has(name) or offer.may_have(name):
        return AskFor(name)
    return NotOffered(name, tuple(offer.names))


def _suits(name: str | None, skill: Skill | None) -> bool:
    return name is not None and (skill is None or skill_of(name) is skill)
