"""An answer in one piece whose status says that all went well: whether that is so.

Some providers send an error with status 200, in place of the answer or inside its only choice.
Pure. It refuses what is not JSON where the dialect says JSON; a `PLAIN` answer may be anything.
"""

from codecs import BOM_UTF8
from typing import Final

import msgspec

from byoai_gateway.router.dialects import MalformedEvent, Usage, is_true, usage_of
from byoai_gateway.router.endpoints import Dialect

# A union with null is no place for `Raw`: msgspec would take null only.
_NULL: Final = msgspec.Raw(b"null")
_EMPTY: Final = msgspec.Raw(b'{"message":"its answer is empty, because of an error"}')
_FAILED: Final = msgspec.Raw(b'{"message":"its answer says only that it failed"}')


class _Message(msgspec.Struct):
    content: object = None
    tool_calls: object = None
    reasoning: object = None
    reasoning_content: object = None
    refusal: object = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: object = None
    finish_reason: object = None
    native_finish_reason: object = None
    error: msgspec.Raw = _NULL

    @property
    def is_empty(self) -> bool:
        it = self.message
        said = it and (
            it.content or it.tool_calls or it.reasoning or it.reasoning_content or it.refusal
        )
        return not (self.text or said)


class _Answer(msgspec.Struct):
    error: msgspec.Raw = _NULL
    usage: msgspec.Raw = _NULL
    choices: list[_Choice] | None = None
    status: object = None
    type: object = None


class _Plain(msgspec.Struct):
    """A list of models or vectors is large, and its entries decide nothing."""

    error: msgspec.Raw = _NULL
    usage: msgspec.Raw = _NULL


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_PLAIN: Final = msgspec.json.Decoder(_Plain)


def check(dialect: Dialect, body: bytes) -> tuple[Usage | None, msgspec.Raw | None]:
    """Return what an answer of status 200 cost, and the error that it is after all.

    Raises:
        MalformedEvent: it cannot be read.
    """
    body = body.removeprefix(BOM_UTF8)  # clients read past it, so it is no fault
    if dialect is Dialect.PLAIN:
        return _check_plain(body)
    try:
        answer = _ANSWER.decode(body)
    except msgspec.ValidationError:  # its message would quote the answer
        raise MalformedEvent("it has a shape that cannot be read") from None
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise MalformedEvent("it is not JSON") from None
    return usage_of(answer.usage), _error(dialect, answer)


def _check_plain(body: bytes) -> tuple[Usage | None, msgspec.Raw | None]:
    try:
        plain = _PLAIN.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None, None
    return usage_of(plain.usage), plain.error if is_true(plain.error) else None


def _error(dialect: Dialect, answer: _Answer) -> msgspec.Raw | None:
    if is_true(answer.error):
        return answer.error
    if dialect is Dialect.RESPONSES and answer.status == "failed":
        return _FAILED
    if dialect is Dialect.MESSAGES and answer.type == "error":
        return _FAILED
    for choice in (answer.choices or ())[:1]:
        if is_true(choice.error):
            return choice.error
        if "error" in (choice.finish_reason, choice.native_finish_reason) and choice.is_empty:
            return _EMPTY
    return None
