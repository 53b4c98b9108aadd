"""What a server answers by itself: no handler was reached, or the handler failed."""

import msgspec

from byoai_shared.api_errors import error_body
from byoai_shared.http1.errors import HeadTimeout, HttpError
from byoai_shared.http1.head import Headers


class Refusal(msgspec.Struct, frozen=True):
    """A request refused: the status, a word for programs, a sentence for people."""

    status: int
    code: str
    sentence: str

    @classmethod
    def of(cls, error: HttpError) -> "Refusal":
        """Return how the client's own fault is told to it."""
        return cls(error.status, error.code, str(error))

    @classmethod
    def of_upstream(cls, error: HttpError) -> "Refusal":
        """Return how the fault of whoever was asked on the client's behalf is told to it."""
        if isinstance(error, HeadTimeout):
            return cls(504, "upstream_timeout", f"upstream: {error}")
        return cls(502, "upstream_error", f"upstream: {error}")


INTERNAL = Refusal(500, "internal_error", "internal error")


def openai_refusal(refusal: Refusal) -> tuple[Headers, bytes]:
    """Return headers and body in OpenAI's shape."""
    body = error_body(refusal.status, refusal.code, refusal.sentence)
    return ((b"content-type", b"application/json"),), body
