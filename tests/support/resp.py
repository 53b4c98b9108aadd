"""A store of counters that speaks just enough of Redis' protocol to turn its clients away."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from byoai_shared.secret import Secret

PASSWORD = "a-password-not-to-be-shown"


class RefusingStore:
    """Answers every command with one error."""

    def __init__(self, error: bytes) -> None:
        self.error = error
        self.port = 0

    @property
    def address(self) -> Secret:
        """For `limits.store`."""
        return Secret(f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the commands of one connection; each is an array, which begins with a star."""
        while line := await reader.readline():
            if line.startswith(b"*"):
                writer.write(b"-" + self.error + b"\r\n")
        writer.close()


@asynccontextmanager
async def refusing_store(error: bytes) -> AsyncGenerator[RefusingStore]:
    """Serve on loopback."""
    store = RefusingStore(error)
    async with await asyncio.start_server(store.serve, "127.0.0.1", 0) as server:
        store.port = server.sockets[0].getsockname()[1]
        yield store
