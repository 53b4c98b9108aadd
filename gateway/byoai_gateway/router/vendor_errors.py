"""Errors in shapes of vendors' own, inside an answer of status 200, in OpenAI's words.

MiniMax's `base_resp`, DashScope's and Zhipu's flat `{"code", "message"}` or `{"code", "msg"}`,
Baidu's `{"error_code", "error_msg"}`. Pure. A code that is an HTTP status means that status; the
vendors' own codes are mapped to one where their documentation says what they mean.
"""

from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec

from byoai_shared.lone_surrogates import decode

Fields = Mapping[str, msgspec.Raw]
"""A JSON object's top level: each value as the bytes it came in."""

_CODES: Final = ("code", "status_code", "error_code", "errcode")
_MESSAGES: Final = ("message", "msg", "status_msg", "error_msg", "errmsg", "detail")
_FINE: Final = frozenset({0, 200, "0", "200", "", "ok", "success", "completed"})
_MODERATION: Final = "content_policy_violation"
_STATUS_OF_MINIMAX: Final = {
    1001: 504,
    1002: 429,
    1004: 401,
    1008: 402,
    1026: 400,
    1027: 400,
    1039: 429,
    1041: 429,
    1042: 400,
    2013: 400,
    2045: 429,
    2049: 401,
    2056: 429,
}
_MINIMAX_MODERATION: Final = frozenset({1026, 1027})
_STATUS_OF_WORD: Final = {
    "accessdenied": 403,
    "arrearage": 402,
    "datainspectionfailed": 400,
    "invalidapikey": 401,
    "invalidparameter": 400,
    "modelnotfound": 404,
    "requesttimeout": 504,
    "throttling": 429,
}
"""DashScope's; what follows a dot says more of the same."""
_any: Final = msgspec.json.Decoder()


def vendor_error(fields: Fields) -> msgspec.Raw | None:
    """Return the error that an object tells beside, or in place of, what was asked for."""
    if "base_resp" in fields:
        return _of_base_resp(_value(fields["base_resp"]))
    code, message = _first(fields, _CODES), _first(fields, _MESSAGES)
    is_code = isinstance(code, int | str) and not isinstance(code, bool)
    if not is_code or _is_fine(code) or not isinstance(message, str):
        return None
    return _error(_status(code), message, None)


def error_in_place(fields: Fields) -> msgspec.Raw | None:
    """Return the error that an object tells which is surely not what was asked for."""
    found = vendor_error(fields)
    if found is not None:
        return found
    message = _first(fields, _MESSAGES)
    return None if not message else _error(None, message, None)


def _of_base_resp(value: object) -> msgspec.Raw | None:
    if not isinstance(value, dict):
        return None
    told = cast("dict[str, Any]", value)
    code = told.get("status_code")
    if not isinstance(code, int) or _is_fine(code):
        return None
    kind = _MODERATION if code in _MINIMAX_MODERATION else None
    return _error(_STATUS_OF_MINIMAX.get(code, code), told.get("status_msg"), kind)


def _status(code: object) -> object:
    """Return the HTTP status that a vendor's code means, or the code."""
    if isinstance(code, str):
        return _STATUS_OF_WORD.get(code.partition(".")[0].lower(), code)
    return code


def _is_fine(code: object) -> bool:
    return (code.lower() if isinstance(code, str) else code) in _FINE


def _first(fields: Fields, names: tuple[str, ...]) -> object:
    for name in names:
        if name in fields:
            return _value(fields[name])
    return None


def _value(raw: msgspec.Raw) -> object:
    try:
        return decode(_any, bytes(raw))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _error(code: object, message: object, kind: str | None) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode({"code": code, "message": message, "type": kind}))
