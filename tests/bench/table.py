"""One table for each comparison: absolute numbers, ratios, targets."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from .comparisons import DIRECT, Comparison
from .rows import TITLES, Row
from .spec import Result

Results = Mapping[tuple[str, str], Result]
"""By chain and measurement."""


def cell(row: Row, chain: str, results: Results) -> float | None:
    """The row's value for a chain; None when it was not measured or has no meaning there."""
    result = results.get((chain, row.measurement))
    if result is None or (row.process and row.process not in result.cpu_s):
        return None
    if not row.is_added:
        return row.value(result)
    base = results.get((DIRECT, row.measurement))
    if base is None or chain == DIRECT:
        return None
    return row.value(result) - row.value(base)


def number(value: float | None) -> str:
    """Three digits that matter."""
    if value is None:
        return ""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def ratio(ours: float | None, other: float | None) -> str:
    """How often the other's value ours is."""
    if ours is None or not other or other < 0:
        return ""
    return f"{ours / other:.2g}x" if ours / other < 100 else f"{ours / other:.0f}x"


def target(row: Row) -> str:
    """What ours is to reach."""
    if row.target is None:
        return ""
    return f"{'≥' if row.more_is_better else '≤'} {row.target:,g}"


def verdict(row: Row, value: float | None) -> str:
    """Whether it does."""
    if row.target is None or value is None:
        return ""
    return "[green]met[/]" if row.is_met(value) else "[red]missed[/]"


def table_of(comparison: Comparison, results: Results, chains: Sequence[str]) -> Table:
    """One line per row that any of the chains has a value for, grouped by measurement."""
    chains = [name for name in comparison.chains if name in chains]
    subject = comparison.subject
    others = [name for name in chains if name != subject]
    table = table_head(comparison, chains, others)
    group = ""
    for row in comparison.rows:
        values = {name: cell(row, name, results) for name in chains}
        if all(value is None for value in values.values()):
            continue
        if row.measurement != group:
            group = row.measurement
            table.add_section()
            table.add_row(f"[bold]{TITLES[group]}[/]")
        own = values.get(subject)
        table.add_row(
            f"  {row.label}",
            *(number(values[name]) for name in chains),
            *(ratio(own, values[name]) for name in others),
            target(row),
            verdict(row, own),
        )
    return table


def table_head(comparison: Comparison, chains: Sequence[str], others: Sequence[str]) -> Table:
    """The columns."""
    table = Table(title=comparison.title, title_justify="left")
    table.add_column("measurement")
    for name in chains:
        table.add_column(name, justify="right")
    for name in others:
        table.add_column(f"{comparison.subject} / {name}", justify="right")
    table.add_column("target", justify="right")
    table.add_column("")
    return table
