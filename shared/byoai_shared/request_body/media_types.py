"""Content-Type and Content-Disposition: a value with parameters, read strictly.

RFC 9110 section 5.6.6 for requests, RFC 2183 and RFC 7578 for the parts of a form. Refused is
what readers are known to read in several ways: a parameter given twice, a backslash before a
quotation mark (an escape to some, a character to browsers), comments, and blanks around `=`.
"""

import re
from dataclasses import dataclass
from typing import Final

from byoai_shared.request_body.errors import UnreadableBody

_TOKEN: Final = rb"[!#$%&'+\-.^_`|~0-9A-Za-z]+"
_VALUE: Final = re.compile(rb"[ \t]*(%b(?:/%b)?)" % (_TOKEN, _TOKEN))
_PARAMETER: Final = re.compile(
    rb'[ \t]*;[ \t]*(%b[*0-9]*)=(?:(%b)|"([^"\x00-\x08\x0a-\x1f\x7f]*)")' % (_TOKEN, _TOKEN)
)
_END: Final = re.compile(rb"[ \t]*;?[ \t]*")


@dataclass(frozen=True, slots=True)
class Parameterized:
    """A header's value, in lower case, and its parameters; their names are in lower case."""

    value: bytes
    parameters: dict[bytes, bytes]


def read_parameterized(header: str, text: bytes) -> Parameterized:
    """Read a header's value and parameters; `header` names it in errors.

    Raises:
        UnreadableBody: it breaks the grammar, or readers disagree on it.
    """
    found = _VALUE.match(text)
    if found is None:
        raise UnreadableBody(f"{header} has no value")
    value, at = found[1].lower(), found.end()
    parameters: dict[bytes, bytes] = {}
    while (part := _PARAMETER.match(text, at)) is not None:
        name, content = part[1].lower(), part[2] if part[3] is None else part[3]
        if name in parameters:
            raise UnreadableBody(f"{header} has a parameter twice")
        if content.endswith(b"\\"):
            raise UnreadableBody(f"{header} has a backslash before a quotation mark")
        parameters[name] = content
        at = part.end()
    if _END.fullmatch(text, at) is None:
        raise UnreadableBody(f"{header} is malformed after its parameter {len(parameters)}")
    return Parameterized(value, parameters)
