import pytest

from byoai_gateway.model_names import is_model_name, wrong_names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vendor/model:free", True),
        ("modèle 7b", True),
        ("m" * 200, True),
        ("m" * 201, False),
        ("", False),
        ("  ", False),
        ("\u202e\u0085x", False),
        ("two\nlines", False),
    ],
)
def test_a_name_of_a_model_is_printable_short_and_not_blank(text: str, *, expected: bool) -> None:
    assert is_model_name(text) is expected


def test_what_is_no_name_is_told_at_its_field() -> None:
    found = wrong_names({"one": "a/b", "two": "  ", "three": None})
    assert list(found) == ["two"]
    assert "not only spaces" in found["two"]
