"""The whole chain on this machine, shown to a person: `python -m demo --model FILE`.

A real model server, gateway, relay and agent as separate processes with real certificates; the
same question is asked directly and through the tunnel. It then stays up until Ctrl-C.
"""

import argparse
import asyncio
import json
import shlex
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from openai import OpenAIError

from .model_server import MODEL_NAME
from .processes import Process, ProcessError
from .question import Answer, ask
from .stack import Stack, Tunnel

QUESTION = "Why is the sky blue? Answer in three sentences."
USER = "ada"


def say(text: str = "", end: str = "\n") -> None:
    """To the person, at once."""
    print(text, end=end, flush=True)


async def show(model: Path, *, is_once: bool) -> None:
    """Build the chain, ask, compare; then, unless it is to be done `once`, stay up."""
    async with AsyncExitStack() as parts:
        scratch = parts.enter_context(tempfile.TemporaryDirectory(prefix="byoai-demo-"))
        directory = Path(scratch)
        say(f"certificates, settings and logs are in {directory}")
        model_url = await parts.enter_async_context(model_server(model, directory))
        say(f"model server   {model_url}")
        stack = await parts.enter_async_context(Stack(directory))
        say(f"gateway        {stack.gateway_url}")
        say(f"relay          {stack.relay_address(stack.relays[0])}")
        tunnel = await stack.open_tunnel(USER, [model_url])
        say(f"agent          joined tunnel {tunnel.tunnel_id} and is online")
        await compare(model_url, stack, tunnel)
        if not is_once:
            invite(stack, tunnel)
            await asyncio.Event().wait()


@asynccontextmanager
async def model_server(model: Path, directory: Path) -> AsyncGenerator[str, None]:
    """A llama.cpp server in a process of its own; its address."""
    command = [sys.executable, "-m", "demo.model_server", "--model", str(model)]
    async with Process("model-server", command, directory=directory) as server:
        yield (await server.ready())["url"]


async def compare(model_url: str, stack: Stack, tunnel: Tunnel) -> None:
    """The same question both ways, token by token, then the figures side by side."""
    say(f"\n{QUESTION}")
    direct = await answered("asked directly", model_url, "unused")
    through = await answered("asked through the tunnel", stack.gateway_url, tunnel.token)
    say(f"\n{'':24}{'directly':>12}{'through the tunnel':>22}")
    for label, one, other in (
        ("time to first token", direct.first_token_text, through.first_token_text),
        ("tokens/s", f"{direct.tokens_per_s:.0f}", f"{through.tokens_per_s:.0f}"),
        ("tokens", f"{direct.tokens}", f"{through.tokens}"),
    ):
        say(f"{label:24}{one:>12}{other:>22}")


async def answered(title: str, url: str, key: str) -> Answer:
    """Ask one way and print the answer as it comes."""
    say(f"\n{title}:\n  ", end="")
    try:
        return await ask(
            QUESTION,
            base_url=url,
            key=key,
            model=MODEL_NAME,
            on_token=lambda token: say(token.replace("\n", "\n  "), end=""),
        )
    except OpenAIError as error:
        raise ProcessError(f"{title}, the question was not answered: {error}") from error
    finally:
        say()


def invite(stack: Stack, tunnel: Tunnel) -> None:
    """How to go on by hand."""
    body = {
        "model": MODEL_NAME,
        "stream": True,
        "messages": [{"role": "user", "content": "Tell me a joke about tunnels."}],
    }
    words = [
        *("curl", "-N", f"{stack.gateway_url}/v1/chat/completions"),
        *("-H", f"Authorization: Bearer {tunnel.token}"),
        *("-H", "Content-Type: application/json"),
        *("-d", json.dumps(body)),
    ]
    say(f"\nThe gateway stays up at {stack.gateway_url}/v1. Ask it yourself:\n")
    say(shlex.join(words))
    say("\nCtrl-C stops everything.")


async def interruptible(work: Coroutine[None, None, None]) -> int:
    """Run to the end or to the first signal; either way every part is stopped in order."""
    task = asyncio.ensure_future(work)
    is_stopping = False

    def stop() -> None:
        """Once: an impatient second Ctrl-C must not cut the stopping short."""
        nonlocal is_stopping
        if not is_stopping:
            is_stopping = True
            say("\nstopping")
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not is_stopping:
            raise
    except ProcessError as error:
        sys.stderr.write(f"\n{error}\n")
        return 1
    return 0


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--once", action="store_true", help="end after the answer")
    options = parser.parse_args()
    if not options.model.exists():
        parser.error(f"there is no model at {options.model}; try: make model")
    return asyncio.run(interruptible(show(options.model, is_once=options.once)))


if __name__ == "__main__":
    sys.exit(main())
