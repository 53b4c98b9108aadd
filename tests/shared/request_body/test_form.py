"""What is read of a multipart form, and what two readers could read differently."""

from email import message_from_bytes, policy
from typing import Any

import pytest
import python_multipart
from hypothesis import given
from hypothesis import strategies as st

from byoai_shared.request_body.errors import UnreadableBody
from byoai_shared.request_body.form import (
    MAX_PART_HEAD_BYTES,
    MAX_PARTS,
    MAX_TEXT_BYTES,
    FormBody,
    read_form,
)
from byoai_shared.request_body.media_types import read_parameterized

TYPE = b"multipart/form-data; boundary=XbX"
WAV = b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav'
FILE = WAV + b"\r\n\r\nRIFF"
MODEL = b'Content-Disposition: form-data; name="model"\r\n\r\nwhisper'


def form(*parts: bytes, end: bytes = b"--XbX--\r\n") -> bytes:
    return b"".join(b"--XbX\r\n" + part + b"\r\n" for part in parts) + end


def field(name: bytes, value: bytes = b"x", *headers: bytes) -> bytes:
    head = (b'Content-Disposition: form-data; name="%b"' % name, *headers)
    return b"\r\n".join((*head, b"", value))


def disposed(disposition: bytes, value: bytes = b"whisper") -> bytes:
    return b"Content-Disposition: " + disposition + b"\r\n\r\n" + value


def read(body: bytes, content_type: bytes = TYPE) -> FormBody:
    return read_form(read_parameterized("Content-Type", content_type), body)


ACCEPTED = {
    "the model first": form(MODEL, FILE),
    "the model last": form(FILE, MODEL),
    "a large file first": form(WAV + b"\r\n\r\n" + b"R" * 1_000_000, MODEL),
    "no line end behind the last boundary": form(MODEL, end=b"--XbX--"),
    "a line end before the first boundary": b"\r\n" + form(MODEL),
    "a name without quotation marks": form(disposed(b"form-data; name=model")),
    "other cases": form(b'content-disposition: FORM-DATA; NAME="model"\r\n\r\nwhisper'),
    "no blank around": form(b'Content-Disposition:form-data;name="model"\r\n\r\nwhisper'),
    "a semicolon at the end": form(disposed(b'form-data; name="model";')),
    "a charset": form(field(b"model", b"whisper", b"Content-Type: text/plain; charset=UTF-8")),
    "another charset that has ASCII": form(
        field(b"model", b"whisper", b"Content-Type: text/plain; charset=ISO-8859-1")
    ),
    "a coding that changes nothing": form(
        field(b"model", b"whisper", b"Content-Transfer-Encoding: 8bit")
    ),
    "a file called model": form(
        disposed(b'form-data; name="x"; filename="model"', b"decoy"), MODEL, FILE
    ),
    "a decoy inside another part": form(
        field(b"prompt", b"name=model\r\n\r\ndecoy\r\n--x"), MODEL, FILE
    ),
    "a head inside a file": form(
        WAV + b'\r\n\r\nContent-Disposition: form-data; name="model"\r\n\r\ndecoy', MODEL
    ),
    "an extended name of a file": form(
        disposed(b'form-data; name="file"; filename="a"; filename*=utf-8\'\'%c3%a9'), MODEL
    ),
    "a file name with a path": form(disposed(b'form-data; name="f"; filename="C:\\a"'), MODEL),
    "a file name that is not UTF-8": form(disposed(b'form-data; name="f"; filename="\xe9"'), MODEL),
    "lists": form(field(b"timestamp_granularities[]"), field(b"timestamp_granularities[]"), MODEL),
    "empty parts": form(field(b"prompt", b""), MODEL),
    "the charset that it is in": form(field(b"_charset_", b"utf-8"), MODEL),
    "bare line ends in a file": form(WAV + b"\r\n\r\n\n\r\n\r--Xb\n--Xb", MODEL),
}


@pytest.mark.parametrize("body", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_a_form_with_one_model(body: bytes) -> None:
    assert read(body).model == "whisper"
    assert lenient_models(body) == [{"whisper"}] * 2


@pytest.mark.parametrize("body", [form(FILE), form(), b"--XbX--"], ids=["a file", "none", "bare"])
def test_a_form_without_a_model(body: bytes) -> None:
    assert read(body).model is None


def test_a_models_text_is_not_touched() -> None:
    value = " 模型\r\n\r\nx "
    assert read(form(field(b"model", value.encode()))).model == value
    assert read(form(field(b"model", b""))).model == ""


def test_the_names_of_all_fields_are_known() -> None:
    assert read(form(FILE, field(b"fallbacks[]"), MODEL)).names == {"file", "fallbacks[]", "model"}


@pytest.mark.parametrize(
    "content_type",
    [
        b'multipart/form-data; boundary="XbX"',
        b"Multipart/Form-Data;Boundary=XbX",
        b"multipart/form-data; charset=utf-8; boundary=XbX; ",
    ],
)
def test_ways_to_name_a_boundary(content_type: bytes) -> None:
    assert read(form(MODEL), content_type).model == "whisper"


def test_a_boundary_with_every_character() -> None:
    boundary = b"09AZaz'()+_,-./:=? x"
    body = form(MODEL).replace(b"XbX", boundary)
    assert read(body, b'multipart/form-data; boundary="%b"' % boundary).model == "whisper"


REFUSED = {
    # two models
    "two models": (form(MODEL, FILE, MODEL), "more than one field 'model'"),
    "another case": (form(MODEL, field(b"Model")), "'Model', which some readers take"),
    "another width": (form(MODEL, field("\uff4dodel".encode())), "which some readers take"),
    "a list": (form(field(b"model[]")), "which some readers take"),
    "an element": (form(MODEL, field(b"model[0]")), "which some readers take"),
    "a blank": (form(MODEL, field(b"model ")), "which some readers take"),
    # a model that is none, or another, to some
    "a model that is a file": (form(disposed(b'form-data; name="model"; filename="m"')), "a file"),
    "by its extended name": (
        form(disposed(b"form-data; name=\"model\"; filename*=utf-8''m")),
        "not a file",
    ),
    "quoted-printable": (
        form(field(b"model", b"=77", b"Content-Transfer-Encoding: quoted-printable")),
        "no Content-Transfer-Encoding",
    ),
    "UTF-7": (form(field(b"model", b"m", b"Content-Type: text/plain; charset=utf-7")), "UTF-8"),
    "not UTF-8": (form(field(b"model", b"\xff")), "UTF-8"),
    "not ASCII in Latin-1": (
        form(field(b"model", b"\xc3\xa9", b"Content-Type: text/plain; charset=iso-8859-1")),
        "UTF-8",
    ),
    "a charset of the whole form": (form(field(b"_charset_", b"utf-16"), MODEL), "must be UTF-8"),
    "a model without end": (form(field(b"model", b"m" * (MAX_TEXT_BYTES + 1))), "more than"),
    # names
    "name*": (form(disposed(b"form-data; name*=utf-8''model"), MODEL), "extended parameter"),
    "name*0": (form(disposed(b'form-data; name*0="mod"; name*1="el"')), "extended parameter"),
    "two names": (form(disposed(b'form-data; name="x"; name="model"')), "a parameter twice"),
    "no name": (form(disposed(b"form-data"), MODEL), "no name"),
    "a quoted pair": (form(disposed(b'form-data; name="mo\\del"')), "escapes"),
    "an escaped quotation mark": (
        form(disposed(b'form-data; name="x"; filename="\\"; name="model"')),
        "backslash before a quotation mark",
    ),
    "percent": (form(field(b"%6dodel"), MODEL), "escapes"),
    "an encoded word": (form(field(b"=?utf-8?B?bW9kZWw=?="), MODEL), "escapes"),
    "a name that is not UTF-8": (form(field(b"\xff"), MODEL), "not UTF-8"),
    "blanks around the equals sign": (form(disposed(b'form-data; name = "model"')), "malformed"),
    "a comment": (form(disposed(b'form-data (x); name="model"')), "malformed"),
    "text behind a parameter": (form(disposed(b'form-data; name="x" name="model"')), "malformed"),
    "no value": (form(disposed(b'; name="model"')), "no value"),
    # heads
    "another disposition": (form(disposed(b'attachment; name="model"')), "not form-data"),
    "no disposition": (form(b"Content-Type: text/plain\r\n\r\nx", MODEL), "no Content-Disposition"),
    "no header": (form(b"\r\nx", MODEL), "malformed"),
    "a header twice": (
        form(b"Content-Disposition: form-data; name=x\r\n" + MODEL),
        "has a header twice",
    ),
    "a folded line": (
        form(b'Content-Disposition: form-data;\r\n name="model"\r\n\r\nwhisper'),
        "malformed",
    ),
    "a bare LF in a head": (
        form(b'X: y\nContent-Disposition: form-data; name="model"\r\n' + FILE),
        "malformed",
    ),
    "a bare CR in a head": (form(b"X: y\rz\r\n" + MODEL), "malformed"),
    "a NUL in a head": (form(field(b"mod\0el")), "malformed"),
    "a blank before a colon": (form(b"Content-Disposition : form-data; name=x\r\n\r\n"), "malform"),
    "a head without end": (
        form(field(b"x", b"y", b"X: " + b"y" * MAX_PART_HEAD_BYTES)),
        "no head, or a head that is too long",
    ),
    "a head that ends in the next part": (
        b'--XbX\r\nContent-Disposition: form-data; name="x"\r\n' + form(MODEL),
        "no head",
    ),
    "a form within": (
        form(field(b"x", b"y", b"Content-Type: multipart/mixed; boundary=z"), MODEL),
        "a multipart body itself",
    ),
    # boundaries
    "text before the first": (b"hello\r\n" + form(MODEL), "does not begin with"),
    "a form before the first": (form(MODEL).replace(b"XbX", b"YbY") + form(MODEL), "not begin"),
    "text after the last": (form(FILE) + form(MODEL), "goes on after"),
    "one line after the last": (form(MODEL) + b"x", "goes on after"),
    "no end": (form(MODEL, end=b""), "without its closing boundary"),
    "an end that is cut": (form(MODEL, end=b"--XbX-"), "text behind a boundary"),
    "another form's end": (form(MODEL, end=b"--YbY--"), "without its closing boundary"),
    "LF only": (form(MODEL).replace(b"\r\n", b"\n"), "text behind a boundary"),
    "a boundary after LF": (
        form(FILE + b'\n--XbX\r\nContent-Disposition: form-data; name="model"\r\n\r\ndecoy', MODEL),
        "in the middle of a line",
    ),
    "a boundary in a line": (form(field(b"prompt", b"say --XbX"), MODEL), "the middle of a line"),
    "a boundary that goes on": (
        form(field(b"prompt", b"\r\n--XbXtra\r\n"), MODEL),
        "text behind a boundary",
    ),
    "blanks behind a boundary": (form(MODEL).replace(b"XbX\r\n", b"XbX \r\n", 1), "text behind"),
    "a part without a line end": (
        b'--XbX\r\nContent-Disposition: form-data; name="model"\r\n\r\n--XbX--',
        "in the middle of a line",
    ),
    "too many parts": (form(*[field(b"x")] * MAX_PARTS, MODEL), f"more than {MAX_PARTS} parts"),
    "nothing": (b"", "does not begin with"),
    "JSON": (b'{"model": "whisper"}', "does not begin with"),
}


@pytest.mark.parametrize(("body", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_form_that_two_readers_could_read_differently(body: bytes, reason: str) -> None:
    with pytest.raises(UnreadableBody, match=reason):
        read(body)


@pytest.mark.parametrize(
    "content_type",
    [
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary=""',
        b'multipart/form-data; boundary="XbX "',
        b"multipart/form-data; boundary=XbX; boundary=YbY",
        b"multipart/form-data; boundary=XbX; Boundary=YbY",
        b"multipart/form-data; boundary=XbX, multipart/form-data; boundary=YbY",
        b"multipart/form-data; boundary*=utf-8''XbX",
        b"multipart/form-data; boundary*=utf-8''YbY; boundary=XbX",
        b"multipart/form-data; boundary*0=X; boundary=XbX",
        b"multipart/form-data; boundary=X/X",
        b"multipart/form-data; boundary=XbX; charset=utf-7",
        b"multipart/form-data; boundary=" + b"X" * 71,
        b"multipart/form-data boundary=XbX",
        b"; boundary=XbX",
        b"",
    ],
)
def test_a_boundary_that_two_readers_could_read_differently(content_type: bytes) -> None:
    with pytest.raises(UnreadableBody):
        read(form(MODEL), content_type)


def test_as_many_parts_as_may_be() -> None:
    assert read(form(*[field(b"x")] * (MAX_PARTS - 1), MODEL)).model == "whisper"


# -- the readers of others


def by_email(body: bytes) -> set[str]:
    """What Python's own reader, which repairs what it can, takes for models."""
    head = b"Content-Type: " + TYPE + b"\r\n\r\n"
    message: Any = message_from_bytes(head + body, policy=policy.HTTP)
    parts = message.get_payload() if message.is_multipart() else ()
    return {
        part.get_payload(decode=True).decode()
        for part in parts
        if str(part.get_param("name", "", "content-disposition")).lower() == "model"
    }


def by_python_multipart(body: bytes) -> set[str]:
    """What the reader of FastAPI, and so of vLLM and LiteLLM, takes for models."""
    found: set[str] = set()

    def on_field(read: Any) -> None:
        if read.field_name.lower() == b"model":
            found.add((read.value or b"").decode())

    def on_file(read: Any) -> None:
        if read.field_name.lower() == b"model":
            read.file_object.seek(0)
            found.add(read.file_object.read().decode())

    parser = python_multipart.FormParser("multipart/form-data", on_field, on_file, boundary=b"XbX")
    parser.write(body)
    parser.finalize()
    return found


def lenient_models(body: bytes) -> list[set[str]]:
    return [by_email(body), by_python_multipart(body)]


_PIECES = st.sampled_from(
    [
        b"--XbX\r\n",
        b"--XbX",
        b"--XbX--",
        b"--XbX--\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"--x",
        MODEL,
        FILE,
        field(b"Model"),
        field(b"x"),
        b'Content-Disposition: form-data; name="model"',
        b'Content-Disposition: form-data; name="file"; filename="model"',
        b"Content-Type: text/plain\r\n",
        b"huge",
        b" ",
    ]
)
_ANY = st.lists(_PIECES, max_size=12).map(b"".join)
_FORMS = st.lists(_PIECES.filter(lambda piece: b"XbX" not in piece), max_size=5).map(
    lambda pieces: form(MODEL, *pieces)
)
_TEXTS = st.lists(_ANY, max_size=3).map(
    lambda values: form(*(field(b"x%d" % at, value) for at, value in enumerate(values)), MODEL)
)


@given(_ANY | _FORMS | _TEXTS)
def test_what_is_accepted_lenient_readers_read_as_we_do(body: bytes) -> None:
    try:
        model = read(body).model
    except UnreadableBody:
        return
    expected: set[str] = set() if model is None else {model}
    assert lenient_models(body) == [expected] * 2
