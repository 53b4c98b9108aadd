"""The entry to the reader: by the headers of a request, what its body says.

A body in a content coding is refused, because the bytes of some (raw DEFLATE) can be made to be
JSON as well: we would read the one and a provider the other.
"""

from typing import Final

from byoai_shared.http1.head import Headers
from byoai_shared.request_body.errors import UnreadableBody
from byoai_shared.request_body.form import FormBody, read_form
from byoai_shared.request_body.json_object import JsonBody, read_object
from byoai_shared.request_body.media_types import read_parameterized

_FORM: Final = b"multipart/form-data"
_JSON: Final = b"application/json"


def read_json(headers: Headers, body: bytes) -> JsonBody:
    """Read a body where only JSON is taken, whatever its Content-Type says.

    Raises:
        UnreadableBody: see `read_object`.
    """
    _check_coding(headers)
    return read_object(body)


def read_upload(headers: Headers, body: bytes) -> FormBody | JsonBody:
    """Read a body where forms are taken; some providers take JSON there as well.

    Raises:
        UnreadableBody: it is neither by its Content-Type; see `read_form` and `read_object`.
    """
    _check_coding(headers)
    types = [value for name, value in headers if name == b"content-type"]
    if len(types) != 1:
        raise UnreadableBody(f"the request has {len(types)} Content-Type headers; send one")
    content_type = read_parameterized("Content-Type", types[0])
    if content_type.value == _FORM:
        return read_form(content_type, body)
    if content_type.value == _JSON:
        return read_object(body)
    raise UnreadableBody("the body must be multipart/form-data by its Content-Type")


def _check_coding(headers: Headers) -> None:
    for name, value in headers:
        if name == b"content-encoding" and value.lower() != b"identity":
            raise UnreadableBody(
                "compressed request bodies are not supported; remove Content-Encoding"
            )
