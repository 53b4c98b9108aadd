"""`make hostile`: every attack in full size, and a table of what came of it.

The verdict is about bytes and refusals. The lags are printed to be compared with the ones before;
they include what the attacker's own work costs on this machine.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from .attacks import ATTACKS
from .place import FULL, SMALL
from .rounds import Row, rounds


def shown(row: Row) -> str:
    """Return a row of the table."""
    verdict = "held" if row.is_held else "NOT REFUSED"
    cells = (
        row.name,
        row.met,
        f"{row.before_ms:.1f} ms",
        f"{row.during_ms:.1f} ms",
        f"{row.byte_count:,}",
        f"{row.seconds:.0f} s",
        verdict,
    )
    return f"| {' | '.join(cells)} |"


COLUMNS = (
    "attack",
    "what the attacker met",
    "other tenant's p99 before",
    "during",
    "its bytes, checked",
    "took",
    "verdict",
)


async def main(*, is_small: bool, names: tuple[str, ...]) -> int:
    """Run the attacks and print the table; 1 if any of them got through."""
    size = SMALL if is_small else FULL
    got_through = 0
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        async for row in rounds(Path(directory), size, names):
            print(shown(row), flush=True)
            got_through += not row.is_held
    print("\nThe other tenant's streams ended complete: each chunk came once and in order.")
    return 1 if got_through else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m hostile", description=__doc__)
    parser.add_argument("--small", action="store_true", help="the size that make test runs")
    parser.add_argument("attack", nargs="*", help="names from the table; all if none is given")
    options = parser.parse_args()
    if unknown := set(options.attack) - set(ATTACKS):
        parser.error(f"unknown attacks {sorted(unknown)}; there are {sorted(ATTACKS)}")
    sys.exit(asyncio.run(main(is_small=options.small, names=tuple(options.attack))))
