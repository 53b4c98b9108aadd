"""Which names are one name to some reader."""

import pytest

from byoai_shared.request_body.names import folded, root


@pytest.mark.parametrize(
    "spelling",
    [
        *("model", "Model", "MODEL", "mOdEl", "mo_del", "mo-del", " model", "model\t", "model\0"),
        "\uff4d\uff4f\uff44\uff45\uff4c",  # fullwidth
        "\U0001d426\U0001d428\U0001d41d\U0001d41e\U0001d425",  # mathematical
        "mode\u217c",  # the Roman numeral fifty
        "mo\u200bdel",  # a space of no width
        "\ufeffmodel",
    ],
)
def test_a_lenient_readers_spelling_of_model(spelling: str) -> None:
    assert folded(spelling) == "model"


@pytest.mark.parametrize("name", ["models", "mode", "odel", "modèl", "modell", "", "moddel"])
def test_another_name(name: str) -> None:
    assert folded(name) != "model"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fallback\u017f", "fallbacks"),  # Go's encoding/json takes it for an s
        ("\u212aey", "key"),  # and the Kelvin sign for a k
        ("prov\u0131der", "provider"),  # whose upper case is the same
        ("prov\u0130der", "provider"),
        ("apiBase", "apibase"),
        ("api_base", "apibase"),
    ],
)
def test_foldings_that_readers_do(name: str, expected: str) -> None:
    assert folded(name) == expected


def test_the_root_of_a_name_in_a_form() -> None:
    names = ("fallbacks", "fallbacks[]", "fallbacks[0][model]", "[x]")
    assert [root(name) for name in names] == ["fallbacks"] * 3 + [""]
