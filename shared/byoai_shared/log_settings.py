"""The settings of a program's log; every program has the same."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is written to stderr."""

    form: Annotated[Literal["console", "json"], Meta(description="for people or for programs")] = (
        "json"
    )
    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="least level shown")
    ] = "info"
