"""Signals at the moments in which no program handles them itself, in real processes.

A moment is an import or a call, never a time: a script of ours in the process sends the signal.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it ends processes by signals")

ENDED_S: Final = 50.0

INJECTED: Final = """
import atexit, os, sys

number, moment, package, *arguments = sys.argv[1:]
kind, _, name = moment.partition(" ")

def send():
    os.kill(os.getpid(), int(number))

class Importing:
    @staticmethod
    def find_spec(module, *_):
        if module == name:
            send()

def calling(frame, event, _):
    if event == "call" and frame.f_code.co_name == name:
        sys.setprofile(None)
        send()

match kind:
    case "import":
        sys.meta_path.insert(0, Importing)
    case "call":
        sys.setprofile(calling)
    case "exit":
        atexit.register(send)

sys.argv = [package, *arguments]
exec(f"from {package}.__main__ import main")
main()
"""


def ended(
    number: int,
    moment: str,
    package: str,
    *arguments: str,
    before: Callable[[], object] | None = None,
) -> tuple[int, bytes]:
    """Run a program that gets a signal at a moment; its exit code, and what it wrote to stderr."""
    result = subprocess.run(
        [sys.executable, "-c", INJECTED, str(int(number)), moment, package, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=before,
        check=False,
        timeout=ENDED_S,
    )
    return result.returncode, result.stderr


@pytest.mark.parametrize(
    ("package", "module", "number"),
    [
        ("byoai_agent", "click", signal.SIGINT),
        ("byoai_agent", "cryptography", signal.SIGTERM),
        ("byoai_agent", "byoai_agent.statusview", signal.SIGINT),
        ("byoai_relay", "click", signal.SIGINT),
        ("byoai_relay", "picows", signal.SIGTERM),
        ("byoai_relay", "byoai_relay.service", signal.SIGINT),
        ("byoai_gateway", "click", signal.SIGINT),
        ("byoai_gateway", "aiohttp", signal.SIGTERM),
        ("byoai_gateway", "byoai_gateway.server", signal.SIGINT),
    ],
)
def test_a_signal_during_imports_ends_a_program_without_a_word(
    package: str, module: str, number: signal.Signals
) -> None:
    assert ended(number, f"import {module}", package, "settings") == (-number, b"")


@pytest.mark.parametrize("package", ["byoai_agent", "byoai_relay", "byoai_gateway"])
def test_the_package_itself_imports_next_to_nothing(package: str) -> None:
    """What it imports comes before its command can deal with signals."""
    program = (
        "import json, sys; before = set(sys.modules); "
        f"import {package}.__main__; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    # Without site-packages' start-up files, which may have imported anything.
    paths = [path for path in sys.path if path]
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {paths!r}; {program}"]
    imported = json.loads(subprocess.check_output(command, timeout=ENDED_S))
    assert {name for name in imported if name.startswith("byoai_")} == {
        package,
        f"{package}.__main__",
        "byoai_shared",
        "byoai_shared.entry_point",
    }
    assert "importlib.metadata" not in imported


@pytest.mark.parametrize("package", ["byoai_agent", "byoai_relay", "byoai_gateway"])
def test_a_signal_at_the_very_end_ends_a_program_without_a_word(package: str) -> None:
    assert ended(signal.SIGINT, "exit", package, "settings") == (-signal.SIGINT, b"")


def test_a_signal_that_is_ignored_from_the_start_stays_ignored() -> None:
    """As for a job that a script runs in the background."""

    def ignoring() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    end = ended(signal.SIGINT, "import click", "byoai_relay", "settings", before=ignoring)
    assert end == (0, b"")


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("import uvloop", signal.SIGINT),
        ("import aiosqlite", signal.SIGTERM),
        ("call do_commit", signal.SIGINT),
    ],
)
def test_a_command_of_the_gateway_ends_at_once_in_the_middle_of_its_work(
    tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(
        f'database.url = "sqlite+aiosqlite:///{tmp_path}/gateway.db"\n'
        f'vault.key_file = "{tmp_path}/vault.key"\n'
        'public.url = "http://127.0.0.1:1"\n'
    )
    command = (
        *("issue-relay-certificate", "relay", "--host", "localhost", "--create"),
        *("--out", str(tmp_path / "relay"), "--config", str(config)),
    )
    assert ended(number, moment, "byoai_gateway", *command) == (-number, b"")
    assert ended(number, "never", "byoai_gateway", *command)[0] == 0, "it works the next time"


@pytest.mark.parametrize("moment", ["import byoai_agent.enrol", "call _decoded"])
def test_an_agents_join_ends_at_once_before_it_has_begun(tmp_path: Path, moment: str) -> None:
    command = ("join", "byoai1_nonsense", "--state-dir", str(tmp_path / "state"))
    assert ended(signal.SIGINT, moment, "byoai_agent", *command) == (-signal.SIGINT, b"")


def test_an_agents_run_ends_at_once_before_it_listens_for_signals(tmp_path: Path) -> None:
    command = ("run", "--state-dir", str(tmp_path / "state"))
    end = ended(signal.SIGINT, "call _loop_factory", "byoai_agent", *command)
    assert end == (-signal.SIGINT, b"")
