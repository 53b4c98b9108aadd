"""multipart/form-data (RFC 7578 on RFC 2046): the names of the fields, and the model.

Read in one pass, in linear time, and without a copy of any part but the model. Beyond the grammar
it refuses what some readers take for the boundary, a head or a name and others do not: text before
the first part and after the last, bare CR or LF in a part's head, folded lines, a boundary that is
not at the beginning of a line, `name*=`, escapes in names, nested multipart bodies, a part without
a name, a missing end. A model in a file, in a transfer encoding, or in a charset that is not a
superset of ASCII is refused as well.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from byoai_shared.request_body.errors import UnreadableBody, given_twice, spelled_otherwise
from byoai_shared.request_body.media_types import Parameterized, read_parameterized
from byoai_shared.request_body.names import MODEL, folded, root

MAX_PARTS: Final = 1000
MAX_PART_HEAD_BYTES: Final = 16 * 1024
MAX_TEXT_BYTES: Final = 4 * 1024
"""Of a field that is read here."""
_CRLF: Final = b"\r\n"
_BOUNDARY: Final = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_HEADER: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_ESCAPES: Final = ("\\", "%", "=?")
"""Quoted pairs, percent-encoding, encoded words (RFC 2047): each is read by some only."""
_CHARSET_FIELD: Final = "_charset_"
"""RFC 7578 section 4.6: a field that names the charset of the others."""
_CHARSETS: Final = frozenset({b"utf-8", b"us-ascii", b"iso-8859-1"})
_ENCODINGS: Final = frozenset({b"7bit", b"8bit", b"binary"})
"""What leaves the bytes as they are."""


@dataclass(frozen=True, slots=True)
class FormBody:
    """What is read of a form."""

    names: frozenset[str]
    model: str | None
    """None: not given."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One part: its name, and where its content is in the body."""

    name: str
    is_file: bool
    content_type: Parameterized | None
    encoding: bytes
    start: int
    end: int


def read_form(content_type: Parameterized, body: bytes) -> FormBody:
    """Read a form by the boundary in its Content-Type.

    Raises:
        UnreadableBody: it is malformed, or readers disagree on it.
    """
    names: set[str] = set()
    model: str | None = None
    for part in _parts(body, _boundary(content_type)):
        if part.name == MODEL:
            if model is not None:
                raise given_twice(MODEL)
            model = _text(part, body)
        elif folded(root(part.name)) == MODEL:
            raise spelled_otherwise(MODEL, part.name)
        elif part.name == _CHARSET_FIELD and _text(part, body).lower() != "utf-8":
            raise UnreadableBody("the form must be UTF-8", param=_CHARSET_FIELD)
        names.add(part.name)
    return FormBody(frozenset(names), model)


def _boundary(content_type: Parameterized) -> bytes:
    boundary = content_type.parameters.get(b"boundary", b"")
    if _BOUNDARY.fullmatch(boundary) is None:
        raise UnreadableBody("Content-Type names no boundary, or one that RFC 2046 does not allow")
    if any(b"*" in name for name in content_type.parameters):
        raise UnreadableBody("Content-Type has an extended parameter (RFC 2231)")
    # Starlette decodes the names of the fields by it: in UTF-7, `+AG0-odel` is a model.
    if content_type.parameters.get(b"charset", b"utf-8").lower() != b"utf-8":
        raise UnreadableBody("the form must be UTF-8; its Content-Type names another charset")
    return boundary


def _parts(body: bytes, boundary: bytes) -> Iterator[_Part]:
    mark = b"--" + boundary
    at = len(_CRLF) if body.startswith(_CRLF) else 0
    if not body.startswith(mark, at):
        raise UnreadableBody("the form does not begin with the boundary of its Content-Type")
    at += len(mark)
    for _ in range(MAX_PARTS + 1):
        if not body.startswith(_CRLF, at):
            break
        head_end = body.find(_CRLF * 2, at, at + MAX_PART_HEAD_BYTES)
        start, following = head_end + 4, body.find(mark, at)
        if following < 0:
            raise UnreadableBody("the form ends without its closing boundary")
        if head_end < 0 or following < start:
            raise UnreadableBody("a part of the form has no head, or a head that is too long")
        end = following - len(_CRLF)
        if end < start or not body.startswith(_CRLF, end):
            raise UnreadableBody("the form's boundary occurs in the middle of a line")
        yield _part(body[at + len(_CRLF) : head_end], start, end)
        at = following + len(mark)
    else:
        raise UnreadableBody(f"the form has more than {MAX_PARTS} parts")
    if not body.startswith(b"--", at):
        raise UnreadableBody("the form has text behind a boundary, on its line")
    if body[at + 2 :].strip(_CRLF):
        raise UnreadableBody("the form goes on after its closing boundary")


def _part(head: bytes, start: int, end: int) -> _Part:
    headers = _headers(head)
    disposition = headers.get(b"content-disposition")
    if disposition is None:
        raise UnreadableBody("a part of the form has no Content-Disposition")
    disposed = read_parameterized("a part's Content-Disposition", disposition)
    if disposed.value != b"form-data":
        raise UnreadableBody("a part of the form is not form-data by its Content-Disposition")
    parameters = disposed.parameters
    if any(b"*" in name and name != b"filename*" for name in parameters):
        raise UnreadableBody("a part's Content-Disposition has an extended parameter (RFC 2231)")
    return _Part(
        _name(parameters.get(b"name")),
        not parameters.keys().isdisjoint({b"filename", b"filename*"}),
        _content_type(headers.get(b"content-type")),
        headers.get(b"content-transfer-encoding", b"binary").lower(),
        start,
        end,
    )


def _headers(head: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for line in head.split(_CRLF):
        field = _HEADER.fullmatch(line)
        if field is None:
            raise UnreadableBody("a line in the head of a part of the form is malformed")
        name = field[1].lower()
        if name in found:
            raise UnreadableBody("a part of the form has a header twice")
        found[name] = field[2].rstrip(b" \t")
    return found


def _name(raw: bytes | None) -> str:
    if raw is None:
        raise UnreadableBody("a part of the form has no name")
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise UnreadableBody("the name of a part of the form is not UTF-8") from None
    if any(escape in name for escape in _ESCAPES):
        raise UnreadableBody("the name of a part of the form has escapes")
    return name


def _content_type(raw: bytes | None) -> Parameterized | None:
    if raw is None:
        return None
    found = read_parameterized("a part's Content-Type", raw)
    if found.value.startswith(b"multipart/"):
        raise UnreadableBody("a part of the form is a multipart body itself")
    return found


def _text(part: _Part, body: bytes) -> str:
    """The content of a field that is read here."""
    name, content_type = part.name, part.content_type
    if part.is_file:
        raise UnreadableBody(f"{name} must be a field, not a file", param=name)
    if part.encoding not in _ENCODINGS:
        raise UnreadableBody(f"{name} must have no Content-Transfer-Encoding", param=name)
    if part.end - part.start > MAX_TEXT_BYTES:
        raise UnreadableBody(f"{name} has more than {MAX_TEXT_BYTES} bytes", param=name)
    content = body[part.start : part.end]
    charset = b"utf-8"
    if content_type is not None:
        charset = content_type.parameters.get(b"charset", charset).lower()
    if charset not in _CHARSETS or (charset != b"utf-8" and not content.isascii()):
        raise UnreadableBody(f"{name} must be UTF-8", param=name)
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UnreadableBody(f"{name} must be UTF-8", param=name) from None
