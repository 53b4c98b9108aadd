"""The answers of OpenRouter's own calls, read leniently: what we do not need may be anything.

An entry of a list of models that cannot be read is left out, so that one odd model does not hide
four hundred others; an answer that is no list at all is malformed.
"""

from typing import TypeVar

import msgspec

from byoai_shared.errors import ByoaiError
from byoai_shared.lone_surrogates import decode

_Value = TypeVar("_Value")


class MalformedAnswer(ByoaiError):
    """An answer is not of the shape that OpenRouter documents."""


class KeyLimits(msgspec.Struct, frozen=True):
    """What a key may spend, in US dollars; None is no limit."""

    limit: float | None = None
    limit_remaining: float | None = None
    limit_reset: str | None = None
    """`daily`, `weekly` or `monthly`; None: never."""
    usage: float | None = None
    is_free_tier: bool = False
    is_management_key: bool = False
    is_provisioning_key: bool = False
    """The older name of the same."""
    expires_at: str | None = None

    @property
    def can_ask_models(self) -> bool:
        """Whether it is a key for models, and not one that manages keys."""
        return not (self.is_management_key or self.is_provisioning_key)

    @property
    def is_spent(self) -> bool:
        """Whether its own limit leaves nothing; the account's balance is not known here."""
        return self.limit_remaining is not None and self.limit_remaining <= 0


class OfferedModel(msgspec.Struct, frozen=True):
    """A model that may be asked for; prices are decimals in US dollars per token."""

    id: str
    name: str
    context_length: int | None
    input_modalities: tuple[str, ...]
    output_modalities: tuple[str, ...]
    prompt_price: str | None
    completion_price: str | None
    supported_parameters: tuple[str, ...]
    expires_on: str | None


class ModelsPage(msgspec.Struct, frozen=True):
    """A part of a list of models."""

    models: tuple[OfferedModel, ...]
    next_link: str | None


class _KeyAnswer(msgspec.Struct):
    data: KeyLimits


class _Links(msgspec.Struct):
    next: str | None = None


class _ModelsAnswer(msgspec.Struct):
    data: list[msgspec.Raw]
    links: _Links | None = None


class _Architecture(msgspec.Struct):
    input_modalities: tuple[str, ...] | None = None
    output_modalities: tuple[str, ...] | None = None


class _Pricing(msgspec.Struct):
    prompt: str | float | None = None
    completion: str | float | None = None


class _Model(msgspec.Struct):
    id: str
    name: str | None = None
    context_length: float | None = None
    architecture: _Architecture | None = None
    pricing: _Pricing | None = None
    supported_parameters: tuple[str, ...] | None = None
    expiration_date: str | None = None


def key_limits(body: bytes) -> KeyLimits:
    """Read the answer of `GET /key`.

    Raises:
        MalformedAnswer: it is something else.
    """
    return _read(body, _KeyAnswer, "a key").data


def models_page(body: bytes) -> ModelsPage:
    """Read a page of a list of models.

    Raises:
        MalformedAnswer: it is something else.
    """
    answer = _read(body, _ModelsAnswer, "a list of models")
    offered = tuple(model for raw in answer.data if (model := _offered(raw)) is not None)
    return ModelsPage(offered, answer.links.next if answer.links is not None else None)


def _read(body: bytes, shape: type[_Value], what: str) -> _Value:
    try:
        return decode(msgspec.json.Decoder(shape), body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # The decoder's sentence may quote the answer, so it is the cause and not the message.
        raise MalformedAnswer(f"OpenRouter's answer is not {what} as it documents it") from error


def _offered(raw: msgspec.Raw) -> OfferedModel | None:
    try:
        model = msgspec.json.decode(raw, type=_Model)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    architecture = model.architecture or _Architecture()
    pricing = model.pricing or _Pricing()
    return OfferedModel(
        id=model.id,
        name=model.name or model.id,
        context_length=_count(model.context_length),
        input_modalities=architecture.input_modalities or (),
        output_modalities=architecture.output_modalities or (),
        prompt_price=_price(pricing.prompt),
        completion_price=_price(pricing.completion),
        supported_parameters=model.supported_parameters or (),
        expires_on=model.expiration_date,
    )


def _price(value: str | float | None) -> str | None:
    return str(value) if value is not None else None


def _count(value: float | None) -> int | None:
    return int(value) if value is not None and value.is_integer() else None
