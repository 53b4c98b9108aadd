import errno
import socket

import pytest

from byoai_agent.words import in_words


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ECONNREFUSED, "Connect call failed"), "nobody listens there"),
        (OSError(f"Multiple exceptions: [Errno {errno.ECONNREFUSED}] a, b"), "nobody listens"),
        (socket.gaierror(-2, "Name or service not known"), "its name cannot be resolved"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "is this host online?"),
        (TimeoutError(), "no answer in time"),
        (OSError(errno.EPERM, "Operation not permitted"), "Operation not permitted"),
        (OSError("odd"), "odd"),
    ],
)
def test_errors_of_the_network(error: OSError, words: str) -> None:
    assert words in in_words(error)
