"""What a model can do, as far as its name tells: model servers list names and little else.

Pure. The agent reports it of its models, and the gateway chooses by it among models when a request
names none. It decides nothing else: a name that a request gives is never judged by it.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final


class Skill(StrEnum):
    """What a model is used for."""

    TEXT = "text-generation"
    EMBEDDINGS = "embeddings"
    RERANKING = "reranking"
    AUDIO = "audio"
    IMAGES = "images"


_WORDS: Final[Mapping[Skill, tuple[str, ...]]] = {
    # Before embeddings: `bge-reranker` is no embedding model, though `bge-` is in its name.
    Skill.RERANKING: ("rerank",),
    Skill.EMBEDDINGS: ("embed", "bge-", "/e5-", "-e5-", "/gte-", "all-minilm"),
    Skill.AUDIO: ("whisper", "tts", "kokoro", "parakeet"),
    Skill.IMAGES: ("stable-diffusion", "sdxl", "flux", "dall-e", "gpt-image"),
}
_REPORTED: Final = (Skill.TEXT, Skill.EMBEDDINGS)


def skill_of(model: str) -> Skill:
    """Return what a model of this name is most likely for; text if nothing tells otherwise."""
    name = f"/{model.lower()}"
    for skill, words in _WORDS.items():
        if any(word in name for word in words):
            return skill
    return Skill.TEXT


def model_for_text(models: Sequence[str], wanted: Sequence[str]) -> str:
    """Return the model for a text request without a name; there is at least one in `models`.

    The first of `wanted`, and then of `models`, that writes text; the first of all if none does.
    """
    names = (*wanted, *models)
    return next((it for it in names if skill_of(it) is Skill.TEXT), names[0])


def capabilities(models: Iterable[str]) -> tuple[str, ...]:
    """Return what an agent reports of its models."""
    found = {skill_of(name) for name in models}
    return tuple(skill.value for skill in _REPORTED if skill in found)
