"""Settings files for the parts: flat, with dotted keys, so that one dict overrides another."""

import json
from collections.abc import Mapping
from pathlib import Path

Value = str | int | float | bool | list[str] | list[dict[str, str]]
Settings = Mapping[str, Value]
"""`{"listen.port": 8080}` is `[listen] port = 8080`."""


def write_settings(path: Path, settings: Settings) -> None:
    """Write a TOML file."""
    lines = [f"{key} = {toml(value)}\n" for key, value in settings.items()]
    path.write_text("".join(lines))


def toml(value: Value | dict[str, str]) -> str:
    """JSON's strings, numbers and booleans are TOML's too; its tables are not."""
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)
