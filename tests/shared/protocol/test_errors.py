"""Codes of today, and of tomorrow."""

import pytest

from byoai_shared.protocol.errors import ResetCode


@pytest.mark.parametrize("number", [0, 255, 2**32 - 1])
def test_a_reset_code_that_is_not_known_yet_still_ends_the_stream(number: int) -> None:
    assert ResetCode(number) is ResetCode.INTERNAL_ERROR


def test_a_known_code_is_itself() -> None:
    assert ResetCode(2) is ResetCode.NOT_PROCESSED
