"""`python -m tests.bench.memory`: what streams and hang-ups leave in the gateway's memory.

A gateway, a relay, an agent and a model server run as processes of their own. Streams begin all
the time, half of them at the operator's own provider and half through a tunnel; every second
client hangs up in the middle. The resident size of each part is printed each minute. After the
first minutes, in which pools fill and allocators settle, it must stay as it is.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from demo.processes import Process

from .chains import Chain, ours, router
from .client import Client, StreamClient, chat_request
from .load import connected
from .meter import Meter

WARM_UP_MINUTES = 4
ALLOWED = 0.02
"""How much of the resident size may be added after that."""
LANES = 8
CHUNKS = 20
PART_S = 0.2


async def streams(chain: Chain, ending: asyncio.Event) -> int:
    """Ask for one stream after the other until it is over; return how many."""
    request = chat_request(chain.headers, "paced", CHUNKS)
    count = 0
    while not ending.is_set():
        client: Client = await connected(chain.port, lambda: stream(request))
        try:
            assert isinstance(client, StreamClient)
            client.send()
            async with asyncio.timeout(30):
                await client.first_event
                if count % 2:
                    await asyncio.sleep(PART_S)  # and hang up
                else:
                    await client.done
        finally:
            client.close()
        count += 1
    return count


def stream(request: bytes) -> StreamClient:
    return StreamClient(request, [])


def shown(sizes: Mapping[str, int]) -> str:
    return "  ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items())


async def watch(meters: Mapping[str, Meter], minutes: int) -> dict[str, list[int]]:
    """Print and return the sizes, minute by minute."""
    seen: dict[str, list[int]] = {}
    begin = time.monotonic()
    for minute in range(1, minutes + 1):
        await asyncio.sleep(begin + 60 * minute - time.monotonic())
        sizes = {
            f"{chain} {part}": size
            for chain, meter in meters.items()
            for part, size in meter.rss().items()
        }
        for name, size in sizes.items():
            seen.setdefault(name, []).append(size)
        print(f"minute {minute}: {shown(sizes)}", flush=True)
    return seen


def growth(sizes: list[int]) -> float:
    """How much the largest after the warm-up exceeds the largest in its last two minutes."""
    before = max(sizes[WARM_UP_MINUTES - 2 : WARM_UP_MINUTES])
    return max(sizes[WARM_UP_MINUTES:]) / before - 1


async def main(minutes: int) -> int:
    async with AsyncExitStack() as parts:
        directory = Path(parts.enter_context(tempfile.TemporaryDirectory()))
        command = [sys.executable, "-m", "tests.bench.upstream"]
        upstream = Process("upstream", command, directory=directory)
        await parts.enter_async_context(upstream)
        port = int((await upstream.ready())["port"])
        chains = [await parts.enter_async_context(made(port, directory)) for made in (ours, router)]
        ending = asyncio.Event()
        lanes = [
            asyncio.ensure_future(streams(chain, ending)) for chain in chains for _ in range(LANES)
        ]
        seen = await watch({chain.name: Meter(chain.processes) for chain in chains}, minutes)
        ending.set()
        count = sum(await asyncio.gather(*lanes))
    print(f"{count} streams, half of them hung up on")
    grown = {name: growth(sizes) for name, sizes in seen.items()}
    for name, part in grown.items():
        print(f"{name}: {part:+.1%} after minute {WARM_UP_MINUTES}")
    return 1 if max(grown.values()) > ALLOWED else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.memory", description=__doc__)
    parser.add_argument("--minutes", type=int, default=WARM_UP_MINUTES + 20)
    sys.exit(asyncio.run(main(parser.parse_args().minutes)))
