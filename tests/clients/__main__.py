"""`python -m tests.clients`: runs client libraries and prints what each can do on each route."""

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import transient_faults
from .answers import Answers
from .libraries import CASES, ENVIRONMENTS, JS_SOURCES, LIBRARIES, Library
from .routes import DIRECT, ROUTES, Route, open_routes
from .runs import Run, run

TESTED = (DIRECT, "default", "tunnel")
"""Every library runs on these; the transient faults are tried on all routes."""


async def test(libraries: Sequence[Library], *, with_faults: bool) -> int:
    """Run everything and print the tables; the exit code says whether all cases passed."""
    console = Console(width=None if sys.stdout.isatty() else 180)
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        answers = Answers()
        async with open_routes(answers, Path(scratch)) as routes:
            runs = await run_all(libraries, routes, answers)
            for name in TESTED if libraries else ():
                console.print(table_of([it for it in runs if it.route == name], name))
            failures += [failure for it in runs for failure in failures_of(it)]
            for is_streamed in (False, True) if with_faults else ():
                outcomes = await transient_faults.outcomes_of(
                    {name: routes[name] for name in ROUTES}, answers, is_streamed=is_streamed
                )
                console.print(transient_faults.table_of(outcomes, is_streamed=is_streamed))
                form = "streamed" if is_streamed else "in one piece"
                failures += [f"{form}, {it}" for it in transient_faults.failures_of(outcomes)]
    for failure in failures:
        console.print(failure, style="red", highlight=False, markup=False)
    console.print("all passed" if not failures else f"{len(failures)} failed")
    return 1 if failures else 0


async def run_all(
    libraries: Sequence[Library], routes: dict[str, Route], answers: Answers
) -> list[Run]:
    """One library after the other, its routes at the same time."""
    runs: list[Run] = []
    for library in libraries:
        tested = [run(library, routes[name], answers) for name in TESTED]
        runs += await asyncio.gather(*tested)
    return runs


def table_of(runs: Sequence[Run], route: str) -> Table:
    """A row for each case, a column for each library."""
    table = Table(title=f"route: {route}")
    table.add_column("case", no_wrap=True)
    for it in runs:
        table.add_column(f"{it.library}\n{it.version}")
    for case in CASES:
        table.add_row(case, *(cell(it, case) for it in runs))
    return table


def cell(it: Run, case: str) -> str:
    """Whether a case passed; a dash for a library that has no such call."""
    if case not in it.problems:
        return "-"
    return "FAILED" if it.problems[case] else "passed"


def failures_of(it: Run) -> list[str]:
    """The cases of a run that failed, a line each."""
    return [
        f"{it.library}, {it.route}, {case}: {problem}"
        for case, problem in it.problems.items()
        if problem
    ]


def main() -> int:
    """Read the command line and run."""
    names = [library.name for library in LIBRARIES]
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    parser.add_argument("--no-faults", action="store_true", help="skip the transient faults")
    options = parser.parse_args()
    chosen = [library for library in LIBRARIES if library.name in options.only]
    missing = [str(it.program) for it in chosen if not it.program.exists()]
    if missing:
        parser.error(f"not installed: {', '.join(missing)}; run: make clients")
    for script in JS_SOURCES.glob("*.mjs"):
        shutil.copy(script, ENVIRONMENTS / "js")  # Node finds packages beside the script
    return asyncio.run(test(chosen, with_faults=not options.no_faults))


if __name__ == "__main__":
    sys.exit(main())
