import copy
import io
import json
import logging
import pickle
import traceback

import msgspec
import pytest
from rich.console import Console

from byoai_shared.secret import Secret

VALUE = "hunter2-hunter2-hunter2"


def test_revealing_is_the_way_out() -> None:
    assert Secret(VALUE).reveal() == VALUE


@pytest.mark.parametrize(
    "shown",
    [
        str(Secret(VALUE)),
        repr(Secret(VALUE)),
        f"{Secret(VALUE)}",
        "%s %r" % (Secret(VALUE), Secret(VALUE)),  # noqa: UP031 - what logging does
        repr([Secret(VALUE)]),
        repr({"key": Secret(VALUE)}),
    ],
)
def test_it_does_not_show_itself(shown: str) -> None:
    assert VALUE not in shown
    assert "***" in shown


def test_it_has_no_attributes_to_dump() -> None:
    assert not hasattr(Secret(VALUE), "__dict__")


def test_matching_compares_the_text() -> None:
    assert Secret(VALUE).matches(VALUE)
    assert not Secret(VALUE).matches(VALUE[:-1])
    assert not Secret(VALUE).matches("")


def test_matching_takes_any_text_from_the_network() -> None:
    assert not Secret(VALUE).matches("\udcff")
    assert not Secret(VALUE).matches("é" * 10)
    assert Secret("clé").matches("clé")


def test_secrets_are_equal_when_their_texts_are() -> None:
    assert Secret(VALUE) == Secret(VALUE)
    assert Secret(VALUE) != Secret("other")
    assert Secret(VALUE) != VALUE


def test_an_empty_secret_is_false() -> None:
    assert not Secret("")
    assert Secret(VALUE)


def test_it_cannot_be_hashed() -> None:
    with pytest.raises(TypeError):
        hash(Secret(VALUE))


@pytest.mark.parametrize("attempt", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_is_neither_pickled_nor_copied(attempt: object) -> None:
    assert callable(attempt)
    with pytest.raises(TypeError) as refused:
        attempt(Secret(VALUE))
    assert VALUE not in str(refused.value)


@pytest.mark.parametrize("encode", [json.dumps, msgspec.json.encode])
def test_it_is_not_serialised_by_accident(encode: object) -> None:
    assert callable(encode)
    with pytest.raises(TypeError) as refused:
        encode({"key": Secret(VALUE)})
    assert VALUE not in str(refused.value)


def _fails_with(secret: Secret) -> None:
    raise RuntimeError(f"calling with {secret} failed")


def test_a_traceback_with_local_variables_does_not_show_it() -> None:
    with pytest.raises(RuntimeError) as failed:
        _fails_with(Secret(VALUE))
    innermost = traceback.TracebackException.from_exception(failed.value, capture_locals=True)
    text = "".join(innermost.format())
    assert "secret = ***" in text
    assert VALUE not in text


def test_a_pretty_traceback_with_local_variables_does_not_show_it() -> None:
    output = io.StringIO()
    console = Console(file=output, width=200)
    try:
        _fails_with(Secret(VALUE))
    except RuntimeError:
        console.print_exception(show_locals=True)
    assert "secret = ***" in output.getvalue()
    assert VALUE not in output.getvalue()


def test_a_log_line_does_not_show_it(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("test").warning("connecting with %s", Secret(VALUE))
    assert caplog.messages == ["connecting with ***"]


def test_a_text_that_quotes_it_is_known() -> None:
    secret = Secret("sk-0123456789ab")
    assert secret.is_in(b'{"message": "wrong key: sk-0123456789ab"}')
    assert not secret.is_in(b"sk-0123")
    assert not Secret("short").is_in(b"it is short")
