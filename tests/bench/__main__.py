"""`python -m tests.bench`: measures whole chains side by side, a table for each comparison.

Every part is a process of its own. On a machine with two cores or more the chain under
measurement is kept on one core, and the upstream and the load generator on another: so the
figures say what the chain costs and not how the kernel happened to place it.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
from rich.console import Console

from demo.processes import Process, ProcessError, output_of

from .chains import Chain, direct, ours, router, ssh_is_installed, ssh_reverse
from .comparisons import COMPARISONS, DIRECT, LITELLM, OURS, ROUTER, SSH, measurements_of
from .litellm_proxy import litellm, litellm_is_installed
from .meter import pin
from .rows import LINKS, MEASUREMENTS
from .spec import Result, Spec
from .table import table_of

LONGEST_S = 90.0
QUIET = 0.15
CHAINS = {DIRECT: direct, SSH: ssh_reverse, OURS: ours, LITELLM: litellm, ROUTER: router}
IS_INSTALLED = {SSH: ssh_is_installed, LITELLM: litellm_is_installed}


class Bench:
    """One run: the measurements that were asked for, over the chains that were."""

    def __init__(self, *, only: Sequence[str], chains: Sequence[str], is_pinned: bool) -> None:
        cores = sorted(os.sched_getaffinity(0)) if is_pinned else []
        self._chain_cores = cores[:1] if len(cores) > 1 else []
        self._own_cores = cores[1:2]
        self._only = only
        self._chains = chains
        self._console = Console(width=None if sys.stdout.isatty() else 140)
        self._results: dict[tuple[str, str], Result] = {}
        self._failures: list[str] = []
        self._upstream_pid = 0

    async def run(self) -> int:
        """Measure everything, print the tables; the exit code says whether all could be."""
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch)
            directory.chmod(0o755)  # the throw-away sshd's user has to reach its own folder
            await self._measure_chains(directory)
            if LINKS in self._only and OURS in self._chains:
                await self._measure_links()
        self._print_tables()
        busy = max((r.other_cpu_s / r.seconds for r in self._results.values()), default=0.0)
        if busy > QUIET:
            self._console.print(
                f"other processes took up to {busy:.0%} of a core meanwhile: "
                "measure again on a quiet machine",
                style="yellow",
            )
        for failure in self._failures:
            self._console.print(failure, style="red", highlight=False)
        return 1 if self._failures else 0

    def _print_tables(self) -> None:
        for comparison in COMPARISONS:
            if any(name in self._chains for name in comparison.chains if name != DIRECT):
                self._console.print(table_of(comparison, self._results, self._chains))
        if SSH in self._chains:
            self._console.print("sshd stands in the relay's rows, ssh in the agent's")
        if LITELLM in self._chains:
            self._console.print("LiteLLM's proxy stands in the gateway's rows")

    async def _measure_chains(self, directory: Path) -> None:
        command = [sys.executable, "-m", "tests.bench.upstream"]
        async with Process("upstream", command, directory=directory) as upstream:
            port = int((await upstream.ready())["port"])
            self._upstream_pid = upstream.pid
            pin(upstream.pid, self._own_cores)
            for name in self._chains:
                try:
                    await self._measure_chain(name, port, directory)
                except ProcessError as error:
                    self._failures.append(f"{name}: {error}")

    async def _measure_chain(self, name: str, upstream_port: int, directory: Path) -> None:
        async with AsyncExitStack() as parts:
            chain = await parts.enter_async_context(CHAINS[name](upstream_port, directory))
            for pid in (pid for group in chain.processes.values() for pid in group):
                pin(pid, self._chain_cores)
            for measurement in self._only:
                if measurement in MEASUREMENTS and measurement in measurements_of(name):
                    await self._measure(chain, measurement)

    async def _measure(self, chain: Chain, name: str) -> None:
        spec = Spec(
            port=chain.port,
            headers=dict(chain.headers),
            processes=dict(chain.processes),
            upstream_pid=self._upstream_pid,
            cpus=self._own_cores,
            **MEASUREMENTS[name],
        )
        await self._result_of(chain.name, name, "load", msgspec.json.encode(spec).decode())

    async def _measure_links(self) -> None:
        cores = json.dumps([self._own_cores, self._chain_cores])
        await self._result_of(OURS, LINKS, "links", cores)

    async def _result_of(self, chain: str, name: str, module: str, argument: str) -> None:
        """Keep what a measuring process answers, or why it did not."""
        command = [sys.executable, "-m", f"tests.bench.{module}", argument]
        with self._console.status(f"{chain}: {name}"):
            try:
                answer = await output_of(command, timeout_s=LONGEST_S)
            except ProcessError as error:
                self._failures.append(f"{chain}, {name}: {str(error).splitlines()[-1]}")
                return
        self._results[chain, name] = msgspec.json.decode(answer, type=Result)


def always() -> bool:
    """Our own parts are installed: this is one of them."""
    return True


def main() -> int:
    """Read the command line and run."""
    names = [*MEASUREMENTS, LINKS]
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--chains", nargs="+", choices=CHAINS, default=list(CHAINS))
    parser.add_argument("--no-pin", action="store_true", help="let the kernel place processes")
    options = parser.parse_args()
    chains = [name for name in options.chains if IS_INSTALLED.get(name, always)()]
    bench = Bench(only=options.only, chains=chains, is_pinned=not options.no_pin)
    return asyncio.run(bench.run())


if __name__ == "__main__":
    sys.exit(main())
