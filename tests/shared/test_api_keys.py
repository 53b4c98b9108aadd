import pytest

from byoai_shared.api_keys import key_fault
from byoai_shared.secret import Secret


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ("", "empty"),
        ("sk-secret\n", "line break"),
        ("sk-secret\r\nx-injected: 1", "line break"),
        ("sk secret", "space"),
        ("sk-secret\x00", "must not"),
        ("sk-sécret", "ASCII"),
        ("Bearer sk-secret", "without|alone"),
    ],
)
def test_what_no_header_can_carry_is_refused_without_showing_it(key: str, complaint: str) -> None:
    fault = key_fault(Secret(key))
    assert fault is not None
    assert any(word in fault for word in complaint.split("|"))
    assert "secret" not in fault


def test_a_key_of_visible_ascii_is_sound() -> None:
    assert key_fault(Secret("sk-or-v1_aB9.~+/=:!")) is None
