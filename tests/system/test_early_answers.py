"""A model server that refuses a request and closes before it has read the body, through the chain.

It closes with unread bytes, so that its host resets the connection right behind the answer. The
bodies are larger than all buffers of the kernel and of our programs together.
"""

import asyncio
import json
import socket
import socketserver
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from typing import Final

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from demo.stack import HOST, Stack, Tunnel, port_of
from support.canaries import Canaries
from support.house import StackMaker, client_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL: Final = "picky"
TIMES: Final = 30
JSON_BYTES: Final = 24 * 1024 * 1024
"""The gateway keeps such a body; credit and sockets on the way to the model server hold less."""
UPLOAD_BYTES: Final = 40 * 1024 * 1024
"""The gateway passes such a body on while it comes: see `REPLAYABLE_UPLOAD_BYTES`."""
_ANSWER_S: Final = 60.0
_WORDS: Final = "the prompt is too long for this model server"
_REFUSAL: Final = json.dumps(
    {"error": {"message": _WORDS, "type": "invalid_request_error", "code": "too_long"}}
).encode()
_MODELS: Final = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()


def answer(status: str, body: bytes) -> bytes:
    """A whole answer, after which the server closes."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body


class PickyConnection(socketserver.BaseRequestHandler):
    """Reads a head, answers, and closes with the body unread."""

    request: socket.socket

    def handle(self) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            piece = self.request.recv(4096)
            if not piece:
                return
            received += piece
        if received.startswith(b"GET "):
            self.request.sendall(answer("200 OK", _MODELS))
            return
        # The answer is behind the first bytes of the body, so that some stay unread.
        self.request.recv(1, socket.MSG_PEEK)
        self.request.sendall(answer("413 Payload Too Large", _REFUSAL))


class PickyServer(socketserver.ThreadingTCPServer):
    """Closes connections at once, without the FIN that the base class sends first."""

    daemon_threads = True

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        assert isinstance(request, socket.socket)
        request.close()


@contextmanager
def picky_server() -> Generator[str]:
    with PickyServer((HOST, 0), PickyConnection) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://{HOST}:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest_asyncio.fixture(loop_scope="session")
async def chain(make_stack: StackMaker, canaries: Canaries) -> AsyncGenerator[tuple[Stack, Tunnel]]:
    with picky_server() as url:
        async with make_stack() as stack:
            tunnel = await stack.open_tunnel("alice", [url])
            canaries.add(tunnel.token, tunnel.join_code)
            yield stack, tunnel


@pytest_asyncio.fixture(loop_scope="session")
async def client(chain: tuple[Stack, Tunnel]) -> AsyncGenerator[AsyncOpenAI]:
    async with client_of(*chain) as opened:
        yield opened


async def test_a_refusal_before_the_prompt_was_read_is_passed_on_every_time(
    client: AsyncOpenAI,
) -> None:
    prompt = "x" * JSON_BYTES
    for _ in range(TIMES):
        with pytest.raises(openai.APIStatusError) as failed:
            await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": prompt}]
            )
        assert (failed.value.status_code, _WORDS in failed.value.message) == (413, True)


async def test_a_refusal_in_the_middle_of_an_upload_is_passed_on_every_time(
    client: AsyncOpenAI,
) -> None:
    sound = b"x" * UPLOAD_BYTES
    for _ in range(TIMES):
        with pytest.raises(openai.APIStatusError) as failed:
            await client.audio.transcriptions.create(model=MODEL, file=("a.wav", sound))
        assert (failed.value.status_code, _WORDS in failed.value.message) == (413, True)


def sent_by_a_client_that_reads_last(port: int, token: str, size: int) -> bytes:
    """Send a whole upload, as far as it is taken, and only then read the answer to its end."""
    edge = b"edge"
    model = b'--edge\r\ncontent-disposition: form-data; name="model"\r\n\r\n%b\r\n' % MODEL.encode()
    file = b'--edge\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    body = model + file + b"x" * size + b"\r\n--edge--\r\n"
    head = (
        f"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: {HOST}\r\n"
        f"authorization: Bearer {token}\r\nconnection: close\r\n"
        f"content-type: multipart/form-data; boundary={edge.decode()}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.create_connection((HOST, port), timeout=_ANSWER_S) as connection:
        connection.sendall(head + body)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    return received


async def test_a_client_that_sends_all_before_it_reads_gets_the_refusal_every_time(
    chain: tuple[Stack, Tunnel],
) -> None:
    stack, tunnel = chain
    for _ in range(TIMES):
        received = await asyncio.to_thread(
            sent_by_a_client_that_reads_last,
            port_of(stack.gateway_url),
            tunnel.token,
            UPLOAD_BYTES,
        )
        assert received.startswith(b"HTTP/1.1 413 ")
        assert _WORDS.encode() in received
