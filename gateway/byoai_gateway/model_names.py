"""What a model may be called: the same in settings, in tests of them and in requests.

A name may be any provider's, so the rule is only that people can read it and headers can hold it.
"""

from typing import Annotated, Final

from msgspec import Meta

MAX_CHARACTERS: Final = 200
RULE: Final = f"at most {MAX_CHARACTERS} printable characters, and not only spaces"

ModelName = Annotated[
    str,
    Meta(
        max_length=MAX_CHARACTERS,
        description="printable characters, and not only spaces; the provider's name",
    ),
]


def is_model_name(text: str) -> bool:
    """Whether a model may be called so."""
    return len(text) <= MAX_CHARACTERS and text.isprintable() and not text.isspace() and text != ""


def wrong_names(named: dict[str, str | None]) -> dict[str, str]:
    """Say by field which of the names that are given are none."""
    return {
        field: f"it must have {RULE}"
        for field, text in named.items()
        if text is not None and not is_model_name(text)
    }
