"""`byoai-agent status`: what the running agent last said of itself."""

import sys
import time

import msgspec
from rich.console import Console
from rich.table import Table

from byoai_agent.state import StateDirectory
from byoai_agent.statusfile import AgentReport, LinkReport, UpstreamReport

# An agent writes its report every few seconds; after this it is not there any more.
_STALE_S = 30.0


def show(console: Console, state: StateDirectory, *, as_json: bool) -> int:
    """Print the report; 0 if the agent runs and has a link, else 1.

    Raises:
        StateError: no agent lives here, or its state cannot be read.
    """
    membership = state.membership()
    report = read_report(state)
    if report is None or not report.is_running or _age_s(report) > _STALE_S:
        if state.is_in_use():
            report = _unwritten(report or AgentReport.empty(membership.tunnel_id))
        elif report is not None and report.is_running:
            report = None  # it ended without a last word
    if report is None or not report.is_running:
        console.print(f"tunnel {membership.tunnel_id}: the agent does not run", highlight=False)
        if report is not None and report.ended:
            console.print(report.ended, markup=False, highlight=False, soft_wrap=True)
        else:
            console.print("Start it:  [bold]byoai-agent run[/]")
        return 1
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    else:
        _print(console, report)
    is_well = _age_s(report) <= _STALE_S and any(link.is_up for link in report.links)
    return 0 if is_well else 1


def _age_s(report: AgentReport) -> float:
    return time.time() - report.written_at


def _unwritten(report: AgentReport) -> AgentReport:
    """The last report of an agent that runs and does not write reports any more."""
    known = (
        f"for {_age_s(report):.0f} s, so the rest is of that time" if report.written_at else "yet"
    )
    problem = (
        f"the agent runs, but has not written its report {known}; "
        "if that stays, the disk may be full or read-only: byoai-agent check"
    )
    return msgspec.structs.replace(
        report, is_running=True, ended="", problems=(problem, *report.problems)
    )


def read_report(state: StateDirectory) -> AgentReport | None:
    """The last report, None if there is none that can be read."""
    content = state.status()
    try:
        return None if content is None else msgspec.json.decode(content, type=AgentReport)
    except msgspec.MsgspecError:
        return None


def _print(console: Console, report: AgentReport) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_row("tunnel", report.tunnel_id)
    for problem in report.problems:
        table.add_row("problem", problem)
    for link in report.links:
        table.add_row("link", _of_link(link))
    for upstream in report.upstreams:
        table.add_row("model server", _of_upstream(upstream))
    busy = f"{report.in_flight} of {report.capacity} running, {report.waiting} waiting"
    table.add_row("requests", busy)
    table.add_row("token", f"valid for {_left(report.token_expires_at)}")
    table.add_row("certificate", f"valid for {_left(report.certificate_expires_at)}")
    console.print(table, markup=False, highlight=False)


def _of_link(link: LinkReport) -> str:
    if not link.is_up:
        return f"{link.relay}: {link.fault or 'connecting'}"
    trip = "" if link.round_trip_ms is None else f", round trip {link.round_trip_ms:g} ms"
    return f"{link.relay}: connected{trip}"


def _of_upstream(upstream: UpstreamReport) -> str:
    if not upstream.is_up:
        return f"{upstream.url}: {upstream.fault or 'not seen yet'}"
    return f"{upstream.url}: {', '.join(upstream.models) or 'no model yet'}"


def _left(expires_at: int) -> str:
    seconds = max(0, int(expires_at - time.time()))
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 60} min {seconds % 60} s"
