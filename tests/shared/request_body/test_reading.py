"""How the headers of a request decide what its body is read as."""

import pytest

from byoai_shared.http1.head import Headers
from byoai_shared.request_body.errors import NotJson, UnreadableBody
from byoai_shared.request_body.form import FormBody
from byoai_shared.request_body.json_object import JsonBody
from byoai_shared.request_body.reading import read_json, read_upload

FORM_TYPE = (b"content-type", b"multipart/form-data; boundary=b")
FORM = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'
JSON_TYPE = (b"content-type", b"application/json; charset=utf-8")
JSON = b'{"model": "m"}'


def test_a_form_and_json_are_taken_where_forms_are() -> None:
    form, json = read_upload((FORM_TYPE,), FORM), read_upload((JSON_TYPE,), JSON)
    assert (type(form), form.model) == (FormBody, "m")
    assert (type(json), json.model) == (JsonBody, "m")


def test_json_is_read_whatever_it_is_called() -> None:
    for headers in ((), (JSON_TYPE,), (FORM_TYPE,), (JSON_TYPE, FORM_TYPE)):
        assert read_json(headers, JSON).model == "m"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ((), "0 Content-Type headers"),
        ((FORM_TYPE, FORM_TYPE), "2 Content-Type headers"),
        (((b"content-type", b"text/plain"),), "must be multipart/form-data"),
        (((b"content-type", b"application/x-www-form-urlencoded"),), "must be multipart/form-data"),
        (((b"content-type", b"multipart/mixed; boundary=b"),), "must be multipart/form-data"),
        (((b"content-type", b""),), "has no value"),
    ],
)
def test_nothing_else_is_taken_for_a_form(headers: Headers, reason: str) -> None:
    with pytest.raises(UnreadableBody, match=reason):
        read_upload(headers, FORM)


def test_json_by_its_type_must_be_json() -> None:
    with pytest.raises(NotJson):
        read_upload((JSON_TYPE,), FORM)


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"identity, deflate", b"br", b""])
def test_a_body_in_a_coding_is_refused(coding: bytes) -> None:
    header = (b"content-encoding", coding)
    with pytest.raises(UnreadableBody, match="Content-Encoding"):
        read_json((header,), JSON)
    with pytest.raises(UnreadableBody, match="Content-Encoding"):
        read_upload((FORM_TYPE, (b"content-encoding", b"identity"), header), FORM)


def test_a_body_that_says_it_has_none_is_read() -> None:
    assert read_json(((b"content-encoding", b"Identity"),), JSON).model == "m"
