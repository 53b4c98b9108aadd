"""What a server answers by itself when a request cannot even reach its handler."""

import msgspec

from byoai_shared.http1.errors import HttpError
from byoai_shared.http1.head import Headers


class Refusal(msgspec.Struct, frozen=True):
    """A request refused: the status, a word for programs, a sentence for people."""

    status: int
    code: str
    sentence: str

    @classmethod
    def of(cls, error: HttpError) -> "Refusal":
        """Return how `error` is told to the client."""
        return cls(error.status, error.code, str(error))


def openai_refusal(refusal: Refusal) -> tuple[Headers, bytes]:
    """Return headers and body in OpenAI's shape, all four keys of it."""
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    error = {
        "message": refusal.sentence,
        "type": kind,
        "param": None,
        "code": refusal.code,
    }
    return ((b"content-type", b"application/json"),), msgspec.json.encode({"error": error})
