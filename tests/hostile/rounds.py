"""One round for each attack: the bystander alone, then beside the attack, then what came of it."""

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from .attacks import ATTACKS, Attack
from .place import NotRefused, Place, Size, opened


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one attack."""

    name: str
    met: str
    before_ms: float
    during_ms: float
    byte_count: int
    seconds: float
    is_held: bool
    """The attacker was refused, and the bystander got every byte; never a question of speed."""


async def rounds(directory: Path, size: Size, names: tuple[str, ...] = ()) -> AsyncGenerator[Row]:
    """Run the attacks one after the other at one place; all of them, or those named."""
    async with opened(directory, size) as place:
        for name, attack in ATTACKS.items():
            if not names or name in names:
                yield await one_round(place, size, name, attack)


async def one_round(place: Place, size: Size, name: str, attack: Attack) -> Row:
    """Run one attack.

    A bystander whose bytes are wrong ends the run: there is nothing left to stand by.
    """
    bystander = place.bystander
    before = await bystander.see(size.chunks)
    during = bystander.new_window()
    begun = time.monotonic()
    is_held = True
    try:
        met = await attack(place, size)
    except NotRefused as error:
        is_held, met = False, str(error)
    seconds = time.monotonic() - begun
    await bystander.reach(during, size.chunks)
    bystander.check()
    return Row(
        name=name,
        met=met,
        before_ms=before.percentile_ms(0.99),
        during_ms=during.percentile_ms(0.99),
        byte_count=before.byte_count + during.byte_count,
        seconds=seconds,
        is_held=is_held,
    )
