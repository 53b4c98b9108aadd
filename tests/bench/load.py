"""The load generator: one process, one measurement, one JSON result on standard output.

It samples the CPU of the chain's processes itself, at the edges of the very window in which it
counts, so that connecting and warming up are not charged to anyone.
"""

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
import uvloop

from .client import (
    BurstClient,
    Client,
    ClosedLoopClient,
    MeasurementFailed,
    StalledClient,
    StreamClient,
    UploadClient,
    chat_request,
)
from .meter import Meter, machine_cpu_s, spent
from .spec import Result, Spec, percentile_ms

C = TypeVar("C", bound=Client)

ENDLESS = 10_000_000
CONNECT_S = 30.0
WARM_UP_S = 1.0
LONGEST_S = 60.0


async def connected(port: int, make: Callable[[], C]) -> C:
    """One client on a connection of its own."""
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(make, "127.0.0.1", port)
    return client


async def all_of(waits: Sequence[Awaitable[object]], timeout_s: float) -> None:
    """Wait for all; the first failure is the measurement's."""
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*waits)
    except TimeoutError as error:
        why = f"not all of {len(waits)} got as far in {timeout_s:g} s"
        raise MeasurementFailed(why) from error


async def window(clients: Sequence[Client], seconds: float) -> None:
    """Let time pass, unless one of the clients fails."""
    done, _ = await asyncio.wait(
        [client.done for client in clients],
        timeout=seconds,
        return_when=asyncio.FIRST_EXCEPTION,
    )
    for future in done:
        future.result()


class Load:
    """One measurement as the spec says."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._meter = Meter(spec.processes)
        self._own = Meter({"load": [os.getpid()], "upstream": [spec.upstream_pid]})
        self._samples: list[int] = []

    async def run(self) -> Result:
        modes: dict[str, Callable[[], Awaitable[Result]]] = {
            "tiny": self._tiny,
            "first_token": self._first_token,
            "paced": self._paced,
            "burst": self._burst,
            "upload": self._upload,
            "stalled": self._stalled,
        }
        return await modes[self._spec.mode]()

    async def _measured(self, what: Awaitable[object]) -> Result:
        """Everything between the two samples; the caller fills in the count."""
        rss_before, all_before = self._meter.rss(), machine_cpu_s()
        chain_before, own_before = self._meter.cpu_s(), self._own.cpu_s()
        begin = time.monotonic()
        await what
        seconds = time.monotonic() - begin
        chain = spent(chain_before, self._meter.cpu_s())
        own = sum(spent(own_before, self._own.cpu_s()).values())
        return Result(
            count=1,
            seconds=seconds,
            cpu_s=chain,
            own_cpu_s=own,
            other_cpu_s=machine_cpu_s() - all_before - own - sum(chain.values()),
            rss_before=rss_before,
            rss_after=self._meter.rss(),
        )

    def _percentiles(self, result: Result) -> Result:
        result.p50_ms = percentile_ms(self._samples, 0.5)
        result.p99_ms = percentile_ms(self._samples, 0.99)
        return result

    async def _tiny(self) -> Result:
        request = chat_request(self._spec.headers, "tiny")
        clients = [
            await connected(self._spec.port, lambda: ClosedLoopClient(request, self._samples))
            for _ in range(self._spec.connections)
        ]
        for client in clients:
            client.send()
        await window(clients, WARM_UP_S)
        self._samples.clear()
        result = await self._measured(window(clients, self._spec.seconds))
        result.count = len(self._samples)
        close_all(clients)
        return self._percentiles(result)

    async def _first_token(self) -> Result:
        result = await self._measured(self._ask_one_by_one())
        result.count = self._spec.count
        return self._percentiles(result)

    async def _ask_one_by_one(self) -> None:
        """The first tenth warms the way up and is not counted."""
        request = chat_request(self._spec.headers, "paced", 0)
        client = await connected(self._spec.port, lambda: StreamClient(request, []))
        loop = asyncio.get_running_loop()
        for number in range(self._spec.count + self._spec.count // 10):
            client.first_event, client.done = loop.create_future(), loop.create_future()
            begin = time.monotonic_ns()
            client.send()
            async with asyncio.timeout(5):
                seen = await client.first_event
                await client.done
            if number >= self._spec.count // 10:
                self._samples.append(seen - begin)
        client.close()

    async def _streams(self, count: int) -> list[StreamClient]:
        """Paced streams, each past its first event."""
        request = chat_request(self._spec.headers, "paced", ENDLESS)
        clients = [
            await connected(self._spec.port, lambda: StreamClient(request, self._samples))
            for _ in range(count)
        ]
        for client in clients:
            client.send()
        await all_of([client.first_event for client in clients], CONNECT_S)
        return clients

    async def _paced(self) -> Result:
        clients = await self._streams(self._spec.connections)
        side = Side(self._spec)
        if self._spec.with_stall_and_upload:
            await side.begin()
        await window(clients, WARM_UP_S)
        self._samples.clear()
        result = await self._measured(window(clients, self._spec.seconds))
        result.count = len(self._samples)
        await side.end()
        result.side_bytes = side.uploaded_bytes
        close_all(clients)
        return self._percentiles(result)

    async def _burst(self) -> Result:
        request = chat_request(self._spec.headers, "burst", self._spec.count)
        clients = [
            await connected(self._spec.port, lambda: BurstClient(request))
            for _ in range(self._spec.connections)
        ]
        result = await self._measured(send_and_finish(clients))
        result.count = sum(client.events for client in clients)
        return result

    async def _upload(self) -> Result:
        def make() -> UploadClient:
            return UploadClient(self._spec.headers, self._spec.upload_bytes)

        clients = [await connected(self._spec.port, make)]
        result = await self._measured(send_and_finish(clients))
        result.count = self._spec.upload_bytes
        return result

    async def _stalled(self) -> Result:
        request = chat_request(self._spec.headers, "burst", ENDLESS)
        clients: list[StalledClient] = []

        async def stall() -> None:
            for _ in range(self._spec.connections):
                client = await connected(self._spec.port, lambda: StalledClient(request))
                clients.append(client)
                client.send()
            await all_of([client.has_stalled for client in clients], CONNECT_S)
            await window(clients, self._spec.seconds)

        result = await self._measured(stall())
        result.count = len(clients)
        close_all(clients)
        return result


class Side:
    """What disturbs the paced streams: one reader that has stopped, one upload after another."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._stalled: StalledClient | None = None
        self._uploads: asyncio.Task[None] | None = None
        self.uploaded_bytes = 0

    async def begin(self) -> None:
        request = chat_request(self._spec.headers, "burst", ENDLESS)
        self._stalled = await connected(self._spec.port, lambda: StalledClient(request))
        self._stalled.send()
        await all_of([self._stalled.has_stalled], CONNECT_S)
        self._uploads = asyncio.create_task(self._upload_in_turn())

    async def _upload_in_turn(self) -> None:
        spec = self._spec

        def make() -> UploadClient:
            return UploadClient(spec.headers, spec.upload_bytes)

        while True:
            client = await connected(spec.port, make)
            try:
                await send_and_finish([client])
            finally:
                client.close()
            self.uploaded_bytes += spec.upload_bytes

    async def end(self) -> None:
        """Stop disturbing; an upload that had failed fails the measurement."""
        if self._stalled is not None:
            self._stalled.close()
        if self._uploads is not None:
            self._uploads.cancel()
            await asyncio.gather(self._uploads, return_exceptions=True)
            if not self._uploads.cancelled():
                self._uploads.result()


async def send_and_finish(
    clients: Sequence[BurstClient] | Sequence[UploadClient],
) -> None:
    """Let all begin at once and wait until each has its whole answer."""
    for client in clients:
        client.send()
    await all_of([client.done for client in clients], LONGEST_S)


def close_all(clients: Sequence[Client]) -> None:
    """End every connection."""
    for client in clients:
        client.close()


async def main(spec: Spec) -> int:
    """Measure and answer; a failure is one line on standard error."""
    if spec.cpus:
        os.sched_setaffinity(0, spec.cpus)
    try:
        result = await Load(spec).run()
    except (MeasurementFailed, OSError) as error:
        sys.stderr.write(f"{spec.mode}: {error}\n")
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(result))
    return 0


if __name__ == "__main__":
    sys.exit(uvloop.run(main(msgspec.json.decode(sys.argv[1], type=Spec))))
