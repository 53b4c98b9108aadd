from typing import Annotated

import msgspec
import pytest

from byoai_gateway.api.field_errors import PRINTABLE, VISIBLE_ASCII, errors_of_fields
from byoai_gateway.router.upstream import ProviderName
from support.control import Api, bearer

SETTINGS = "/api/user-preferences/ai-provider"
CANARY = "sk-or-v1-canary"


class Inner(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(pattern=PRINTABLE)]


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    provider: ProviderName | msgspec.UnsetType = msgspec.UNSET
    key: Annotated[str, msgspec.Meta(max_length=9, pattern=VISIBLE_ASCII)] | None = None
    other: Annotated[str, msgspec.Meta(pattern="^[ab]*$")] = ""
    text: Annotated[str, msgspec.Meta(min_length=1)] = "-"
    many: Annotated[tuple[int, ...], msgspec.Meta(max_length=2)] = ()
    inner: Inner | None = None
    on: bool = False


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (
            b'{"provider": "sk-or-v1-canary"}',
            {"provider": "it must be one of default, openrouter, self-hosted"},
        ),
        (
            b'{"key": "a b"}',
            {"key": "it must be one word of ASCII characters; look for spaces and line breaks in "
             "it"},
        ),
        (b'{"key": "0123456789"}', {"key": "it must have at most 9 characters"}),
        (b'{"other": "c"}', {"other": "it holds characters that it may not hold"}),
        (b'{"text": ""}', {"text": "it must not be empty"}),
        (b'{"many": [1, 2, 3]}', {"many": "it must have at most 2 entries"}),
        (b'{"inner": {"name": ""}}', {"inner.name": "it must be one line of text, and not empty"}),
        (b'{"on": "yes"}', {"on": "Expected `bool`, got `str`"}),
        (b'{"no": 1}', {"no": "there is no such field"}),
        (b"[]", {}),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_without_patterns_and_values(
    raw: bytes, found: dict[str, str]
) -> None:
    assert errors_of_fields(raw, Outer) == found


@pytest.mark.parametrize("path", [SETTINGS, "/agent/v1/enrol", "/api/tunnel/register"])
@pytest.mark.parametrize(
    "rest",
    [
        b"garbage",
        b'"a": "\xff"}',
        b'"a": "\\ud800"}',
        b'"a": 01}',
        b'"a": 1}{}',
        b'"a": ' + b"[" * 3000 + b"]" * 3000 + b"}",
    ],
)
async def test_what_is_no_json_behind_a_wrong_field_is_no_fault_of_ours(
    api: Api, path: str, rest: bytes
) -> None:
    wrong = b'{"userId": 7, "joinCode": 7, "aiProvider": 7, '
    headers = {"Authorization": bearer("alice", api.clock)}
    async with api.http.post(path, data=wrong + rest, headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] in {"invalid_json", "invalid_body"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"aiProvider": "sk-or-v1-canary"}',
        b'{"aiProvider": "sk-or-v1-canary", "aiProvider": "default"}',
        b'"sk-or-v1-canary"',
    ],
)
async def test_a_key_in_the_wrong_place_is_not_repeated(api: Api, body: bytes) -> None:
    headers = {"Authorization": bearer("alice", api.clock)}
    async with api.http.post(SETTINGS, data=body, headers=headers) as response:
        assert response.status == 400
        assert CANARY not in await response.text()
