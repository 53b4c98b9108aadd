"""`SSLKEYLOGFILE` in the environment of our programs: it is neither written nor a fault."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = ("byoai-gateway", "byoai-relay", "byoai-agent")


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("name", ["keys.log", "no/such/folder/keys.log"])
def test_a_program_starts_and_writes_no_key_log(program: str, name: str, tmp_path: Path) -> None:
    log = tmp_path / name
    ran = subprocess.run(
        [Path(sys.executable).with_name(program), "--version"],
        env={**os.environ, "SSLKEYLOGFILE": str(log)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert not log.exists()


def test_a_library_in_the_gateway_makes_no_context_with_a_key_log(tmp_path: Path) -> None:
    """Drivers of databases and stores make their contexts late and by themselves."""
    log = tmp_path / "keys.log"
    program = (
        "import byoai_gateway.cli, ssl, sys;sys.exit(ssl.create_default_context().keylog_filename)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "SSLKEYLOGFILE": str(log)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert not log.exists()
