"""docs/security.md names the tests that show what it claims; here they are looked up."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
REFERENCE: Final = re.compile(r"`(?P<file>tests/[\w/]+\.py)?(?P<name>(?:::\w+)*)`")
NO_CLAIMS: Final = frozenset({"What to know when operating it"})
"""Sections about what is not defended against, and what an operator has to do instead."""


def sections() -> Iterator[tuple[str, str]]:
    """Yield the title and the text of each section."""
    text = (ROOT / "docs" / "security.md").read_text("utf-8")
    for section in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        yield title, body


def blocks(body: str) -> Iterator[str]:
    """Yield paragraphs and bullets; a table belongs to the paragraph that introduces it."""
    paragraphs = [it for it in re.split(r"\n\s*\n|\n(?=- )", body.strip()) if it.strip()]
    for number, paragraph in enumerate(paragraphs):
        if paragraph.startswith("|") and number:
            continue
        yield paragraph


def references(text: str) -> Iterator[tuple[str, str]]:
    """Yield file and name of each reference; `::name` is in the file named before it."""
    file = ""
    for found in REFERENCE.finditer(text):
        file = found["file"] or file
        if found["file"] or found["name"]:
            yield file, found["name"].removeprefix("::")


@cache
def names_in(file: str) -> frozenset[str]:
    """Return the names of a file's tests, those in classes as `Class::name`."""
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    return frozenset(names_of(ast.parse(path.read_text("utf-8")).body, ""))


def names_of(body: list[ast.stmt], within: str) -> Iterator[str]:
    """Yield the names of the tests in a module or a class."""
    for node in body:
        match node:
            case ast.ClassDef():
                yield from names_of(node.body, f"{within}{node.name}::")
            case ast.FunctionDef() | ast.AsyncFunctionDef() if node.name.startswith("test_"):
                yield within + node.name
            case _:
                pass


CLAIMS: Final = [
    pytest.param(block, id=f"{title}, {' '.join(block.split()[:6])}")
    for title, body in sections()
    if title not in NO_CLAIMS
    for block in blocks(body)
]


@pytest.mark.parametrize("block", CLAIMS)
def test_each_claim_names_its_test(block: str) -> None:
    assert list(references(block)), f"no test is named by:\n{block}"


def test_each_test_that_is_named_exists() -> None:
    named = [it for _, body in sections() for it in references(body)]
    missing = [
        f"{file}::{name}"
        for file, name in named
        if (name and name not in names_in(file)) or not names_in(file)
    ]
    assert missing == []
    assert len(named) > 100


def test_a_reference_without_a_file_is_in_the_file_before_it() -> None:
    text = "a (`tests/a/test_b.py::test_c`, `::TestD::test_e`), `b`, `tests/f/test_g.py`"
    assert list(references(text)) == [
        ("tests/a/test_b.py", "test_c"),
        ("tests/a/test_b.py", "TestD::test_e"),
        ("tests/f/test_g.py", ""),
    ]
