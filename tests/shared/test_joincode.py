import string
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_shared.identity import new_tunnel_id
from byoai_shared.joincode import JoinCode, JoinCodeError, decode, encode
from byoai_shared.secret import Secret

ALPHABET = string.ascii_letters + string.digits + "-_"
SECRET = "s" * 43
CODE = JoinCode("https://gateway.example:8443", new_tunnel_id(), Secret(SECRET), bytes(32))
TEXT = encode(CODE)

codes = st.builds(
    JoinCode,
    gateway_url=st.from_regex(
        r"https?://[a-z][a-z0-9.-]{0,60}[a-z](:[1-9][0-9]{0,3})?(/[a-z]{1,9})?", fullmatch=True
    ),
    tunnel_id=st.builds(new_tunnel_id),
    secret=st.builds(Secret, st.text(ALPHABET, min_size=43, max_size=43)),
    ca_sha256=st.none() | st.binary(min_size=32, max_size=32),
)


@given(codes)
def test_every_code_survives_its_text(code: JoinCode) -> None:
    assert decode(encode(code)) == code


@given(codes)
def test_a_code_is_one_word_that_a_shell_leaves_alone(code: JoinCode) -> None:
    text = encode(code)
    assert text.startswith("byoai1_")
    assert set(text) <= set(ALPHABET)


@given(st.integers(20, 80), st.sampled_from(["\n", "\r\n", "\n  ", " ", "\t"]))
def test_what_a_terminal_adds_is_ignored(width: int, between: str) -> None:
    pasted = f"  {between.join(textwrap.wrap(TEXT, width))}\n"
    assert decode(pasted) == CODE


@given(st.integers(7, len(TEXT) - 1), st.sampled_from(ALPHABET))
def test_every_mistyped_character_is_noticed(position: int, character: str) -> None:
    mistyped = TEXT[:position] + character + TEXT[position + 1 :]
    if mistyped != TEXT:
        with pytest.raises(JoinCodeError, match="copy all of it again"):
            decode(mistyped)


@given(st.integers(7, len(TEXT) - 2))
def test_two_exchanged_characters_are_noticed(position: int) -> None:
    first, second = TEXT[position], TEXT[position + 1]
    exchanged = TEXT[:position] + second + first + TEXT[position + 2 :]
    if exchanged != TEXT:
        with pytest.raises(JoinCodeError):
            decode(exchanged)


@given(st.integers(0, len(TEXT) - 1))
def test_a_code_that_was_not_copied_whole_is_noticed(length: int) -> None:
    with pytest.raises(JoinCodeError):
        decode(TEXT[:length])


@pytest.mark.parametrize("text", ["", "hello", TEXT.removeprefix("byoai1_"), "byoai_" + TEXT[7:]])
def test_what_is_no_join_code_is_told_so(text: str) -> None:
    with pytest.raises(JoinCodeError, match="begins with byoai1_"):
        decode(text)


@pytest.mark.parametrize("prefix", ["byoai2_", "byoai10_"])
def test_a_code_of_a_later_version_asks_for_an_update(prefix: str) -> None:
    with pytest.raises(JoinCodeError, match="update the agent"):
        decode(prefix + TEXT[7:])


@pytest.mark.parametrize("rest", ["é" * 20, "=" * 40, "\x00" * 9, "a" * 5000, "a" * 10_000_000])
def test_garbage_behind_the_prefix_is_refused(rest: str) -> None:
    with pytest.raises(JoinCodeError):
        decode("byoai1_" + rest)


@given(st.text())
def test_any_text_is_a_code_or_a_clear_error(text: str) -> None:
    with pytest.raises(JoinCodeError):
        decode("byoai1_" + text)


@pytest.mark.parametrize(
    "code",
    [
        JoinCode("ftp://gateway.example", CODE.tunnel_id, CODE.secret),
        JoinCode("https://", CODE.tunnel_id, CODE.secret),
        JoinCode("https://[::1", CODE.tunnel_id, CODE.secret),
        JoinCode("https://gateway.example", "../../etc/passwd", CODE.secret),
        JoinCode("https://gateway.example", CODE.tunnel_id, Secret("short")),
        JoinCode("https://gateway.example", CODE.tunnel_id, CODE.secret, b"short"),
    ],
    ids=["scheme", "no host", "bad host", "tunnel", "secret", "hash"],
)
def test_contents_that_we_would_not_have_made_are_refused(code: JoinCode) -> None:
    with pytest.raises(JoinCodeError, match="another version"):
        decode(encode(code))


def test_neither_a_code_nor_its_errors_show_the_secret() -> None:
    assert SECRET not in repr(CODE)
    with pytest.raises(JoinCodeError) as refused:
        decode(TEXT[:-1])
    assert SECRET not in str(refused.value)
    assert not any(part in str(refused.value) for part in textwrap.wrap(TEXT[7:], 20))
