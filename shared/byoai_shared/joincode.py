"""Join codes: all that an agent needs to find its gateway and prove that it was invited.

`byoai1_` and base64url of a JSON array with a checksum behind it. The checksum catches a
mistyped or half-pasted code before anything is sent, and says so in words.
"""

import base64
import binascii
import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec

from byoai_shared.errors import ByoaiError
from byoai_shared.identity import IdentityError, parse_tunnel_id
from byoai_shared.secret import Secret

PREFIX: Final = "byoai1_"
CHECKSUM_BYTES: Final = 4
MAX_CODE_CHARACTERS: Final = 2048


_OTHER_VERSION = re.compile(r"byoai(?!1_)[0-9]+_")
_QUOTES: Final = frozenset("\"'`<>\u2018\u2019\u201c\u201d\u00ab\u00bb")
_NEWER = "the join code is of another version: update the agent"


class JoinCodeError(ByoaiError):
    """A join code cannot be read."""


@dataclass(frozen=True, slots=True)
class JoinCode:
    """An invitation to one tunnel."""

    gateway_url: str
    tunnel_id: str
    secret: Secret
    ca_sha256: bytes | None = None
    """The hash of the gateway's CA certificate (DER) when that CA is private."""


class _Payload(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    gateway_url: Annotated[str, msgspec.Meta(min_length=8, max_length=1024)]
    tunnel_id: str
    secret: Annotated[str, msgspec.Meta(min_length=16, max_length=128)]
    ca_sha256: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)] | None = None


def encode(code: JoinCode) -> str:
    """Return the text that a person pastes."""
    payload = _Payload(code.gateway_url, code.tunnel_id, code.secret.reveal(), code.ca_sha256)
    raw = msgspec.json.encode(payload)
    return _text(raw + _checksum(raw))


def decode(text: str) -> JoinCode:
    """Read a join code, however it was wrapped or quoted on its way here.

    Blanks, line breaks, invisible characters and quotation marks are no part of a code, so that
    they are dropped; the checksum tells whether what is left is the code. No error shows any part
    of the text.

    Raises:
        JoinCodeError: it is no join code, or a character of it is wrong or missing.
    """
    code = "".join(one for one in text if not _is_noise(one))
    if _OTHER_VERSION.match(code):
        raise JoinCodeError(_NEWER)
    if not code.startswith(PREFIX):
        raise JoinCodeError(f"a join code begins with {PREFIX}; copy it again from the settings")
    damaged = "the join code is damaged: copy all of it again, from byoai1_ to its end"
    if len(code) > MAX_CODE_CHARACTERS:
        raise JoinCodeError(damaged)
    body = code.removeprefix(PREFIX)
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise JoinCodeError(damaged) from None
    payload, checksum = raw[:-CHECKSUM_BYTES], raw[-CHECKSUM_BYTES:]
    if checksum != _checksum(payload) or _text(raw) != code:
        raise JoinCodeError(damaged)
    return _read(payload)


def _is_noise(character: str) -> bool:
    """Whether a character comes from a terminal, a web page or a letter, not from a code."""
    return character.isspace() or unicodedata.category(character) == "Cf" or character in _QUOTES


def _text(raw: bytes) -> str:
    """Return the one text for these bytes: base64 has several for some."""
    return PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _read(payload: bytes) -> JoinCode:
    try:
        read = msgspec.json.decode(payload, type=_Payload)
        parse_tunnel_id(read.tunnel_id)
        url = urlsplit(read.gateway_url)
    except (msgspec.MsgspecError, IdentityError, ValueError):
        raise JoinCodeError(_NEWER) from None
    if url.scheme not in {"https", "http"} or not url.hostname:
        raise JoinCodeError(_NEWER)
    return JoinCode(read.gateway_url, read.tunnel_id, Secret(read.secret), read.ca_sha256)


def _checksum(raw: bytes) -> bytes:
    return hashlib.sha256(b"byoai join code\0" + raw).digest()[:CHECKSUM_BYTES]
