"""Every attack in small size: attackers are refused, and the other tenant is served."""

from pathlib import Path
from typing import Final

import pytest

from hostile.place import SMALL
from hostile.rounds import Row, rounds

LONGEST_S: Final = 300.0
"""A limit for what hangs: starting programs takes a slow machine long."""


@pytest.mark.timeout(LONGEST_S)
async def test_attackers_are_refused_and_the_other_tenant_gets_every_byte(tmp_path: Path) -> None:
    rows: list[Row] = [row async for row in rounds(tmp_path, SMALL)]
    for row in rows:
        print(f"{row.name}: {row.met}; p99 {row.before_ms:.1f} ms, then {row.during_ms:.1f} ms")
    assert [row.name for row in rows if not row.is_held] == []
    assert all(row.byte_count for row in rows)
