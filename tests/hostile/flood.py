"""Stores denials in the gateway's database, as a great many accounts would make them.

A process of its own, of the lowest priority: those accounts do their work on other machines.
"""

import argparse
import os
import sqlite3
import time
from contextlib import closing
from typing import Final

AGE_S: Final = 600
"""How long ago the first of them was made; tokens live longer."""
ROWS: Final = 1_000
"""Of one transaction: a gateway's are smaller still, and its other writers wait for each."""
DATABASE_S: Final = 60.0
TURN_S: Final = 0.005
"""For the gateway's own writers, which would make these rows in turns with all others."""


def store(path: str, count: int) -> int:
    """Store so many denials, and return the last revision."""
    now = int(time.time())
    revision = 0
    with closing(sqlite3.connect(path, timeout=DATABASE_S)) as database:
        for start in range(0, count, ROWS):
            numbers = range(start, min(start + ROWS, count))
            with database:
                revision = _next_revision(database)
                database.executemany(
                    "INSERT INTO denials (subject, user_id, revision, denied_at, denied_until)"
                    " VALUES (?, ?, ?, ?, ?)",
                    [
                        (
                            f"flood{n:021}/a{n:020}",
                            f"mallory{n // 64}",
                            revision,
                            now - AGE_S + n * AGE_S // count,
                            now + 900,
                        )
                        for n in numbers
                    ],
                )
            time.sleep(TURN_S)
    return revision


def _next_revision(database: sqlite3.Connection) -> int:
    """Count a change, as the gateway does in each such transaction."""
    database.execute("UPDATE counters SET value = value + 1 WHERE name = 'trust'")
    row = database.execute("SELECT value FROM counters WHERE name = 'trust'").fetchone()
    return int(row[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m hostile.flood", description=__doc__)
    parser.add_argument("database")
    parser.add_argument("count", type=int)
    options = parser.parse_args()
    os.nice(19)
    print(store(options.database, options.count))
