"""One request that alone would fill more of the gateway's memory than a user's share."""

import json
from typing import Final

from demo.stack import HOST
from hostile.place import ATTACKER, BUFFERED_BYTES, NotRefused, Place, Size, said

SHARES: Final = 4
"""A user's part is one of so many; see docs/router.md."""


async def one_request(place: Place, _size: Size) -> str:
    """Declare a body of more than the share, and send none of it."""
    length = BUFFERED_BYTES // SHARES + 1
    request = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
        f"authorization: Bearer {place.trudy.token}\r\ncontent-type: application/json\r\n"
        f"content-length: {length}\r\n\r\n"
    )
    try:
        answer = await said((HOST, place.gateway_port), request.encode(), ATTACKER)
    except TimeoutError as error:
        raise NotRefused(f"the gateway waits for a body of {length:,} bytes") from error
    head, _, body = answer.partition("\r\n\r\n")
    status = head[9:12]
    if status not in {"413", "429", "503"}:
        raise NotRefused(f"a body of {length:,} bytes was answered {status}")
    return f"{length:,} bytes: {status} {json.loads(body)['error']['code']}"
