"""Every command of ours that a message, a docstring or the documentation names exists."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from byoai_agent.cli import cli as agent
from byoai_gateway.cli import main as gateway
from byoai_relay.cli import main as relay

ROOT = Path(__file__).parents[2]
PROGRAMS: dict[str, click.Command] = {
    "byoai-agent": agent,
    "byoai-gateway": gateway,
    "byoai-relay": relay,
}
NAMED = re.compile(r"(?P<program>byoai-(?:agent|gateway|relay)) (?P<rest>[^`\n]*)")
PROSE = {"runs"}
"""What follows a program's name in a sentence about it."""
WORD = re.compile(r"-{0,2}[a-z][a-z-]*")
MARK = re.compile(r"\[/?[a-z ]*\]")


def texts(path: Path) -> Iterator[str]:
    """The texts of a module as they are shown, f-strings with a gap for each value."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [one.value if isinstance(one, ast.Constant) else "" for one in node.values]
            yield "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def named(text: str) -> Iterator[tuple[str, list[str]]]:
    for match in NAMED.finditer(MARK.sub("", text)):
        words: list[str] = []
        for word in re.split(r"[\s:;,.)]+", match["rest"]):
            if not WORD.fullmatch(word.strip("'\"")):
                break
            words.append(word)
        if words and words[0] not in PROSE:
            yield match["program"], words


def fault(program: str, words: list[str]) -> str | None:
    """Why a command line does not exist, judged by its command and its options."""
    command = PROGRAMS[program]
    rest = list(words)
    while isinstance(command, click.Group):
        if not rest or rest[0].startswith("-"):
            break
        found = command.commands.get(rest.pop(0))
        if found is None:
            return f"{program} has no command in {' '.join(words)!r}"
        command = found
    options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    options |= {"--help", "--version"}
    unknown = [word for word in rest if word.startswith("--") and word not in options]
    return f"{program} {' '.join(words)} has no option {unknown[0]}" if unknown else None


SOURCES = sorted(
    path
    for part in ("agent", "gateway", "relay", "shared")
    for path in (ROOT / part / f"byoai_{part}").rglob("*.py")
)


@pytest.mark.parametrize("part", ["agent", "gateway", "relay", "shared"])
def test_every_command_that_a_message_names_exists(part: str) -> None:
    paths = [path for path in SOURCES if f"byoai_{part}" in path.parts]
    assert paths
    faults = [
        f"{path.name}: {found}"
        for path in paths
        for text in texts(path)
        for program, words in named(text)
        if (found := fault(program, words)) is not None
    ]
    assert faults == []
