"""The demo as a person runs it, with the real model."""

import asyncio
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from demo.processes import Process, output_of

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(90)]

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"
COMMAND = [sys.executable, "-m", "demo", "--model", str(MODEL)]


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if not MODEL.exists():
        pytest.fail(f"there is no model at {MODEL}; try: make model")


async def test_shows_the_same_answer_both_ways_and_ends() -> None:
    said = await output_of([*COMMAND, "--once"], timeout_s=60)
    directly, through = re.findall(r"^asked .*:\n((?:  .*\n)+)", said, re.MULTILINE)
    assert len(directly.split()) > 10
    assert through == directly
    assert re.search(r"time to first token +\d+ ms +\d+ ms", said)
    assert re.search(r"tokens/s +\d+ +\d+", said)


async def test_stays_up_for_a_curl_line_until_ctrl_c(tmp_path: Path) -> None:
    demo = Process("demo", COMMAND, directory=tmp_path)
    async with demo:
        line = await demo.line("curl -N", timeout_s=60)
        await demo.line("Ctrl-C stops everything")
        parts = psutil.Process(demo.pid).children(recursive=True)
        assert len(parts) >= 4
        answer = await output_of([*shlex.split(line), "--silent", "--fail-with-body"])
        psutil.Process(demo.pid).send_signal(signal.SIGINT)
        assert await demo.ended(30.0) == 0
    assert answer.count("data: ") > 3
    assert answer.rstrip().endswith("data: [DONE]")
    assert not [part for part in parts if part.is_running()]


async def test_says_what_is_missing_when_a_part_does_not_come_up(tmp_path: Path) -> None:
    bad = tmp_path / "not-a-model.gguf"
    bad.write_bytes(b"nothing")
    child = await asyncio.create_subprocess_exec(
        *COMMAND[:-1], str(bad), "--once", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(60):
        _, said = await child.communicate()
    assert child.returncode == 1
    assert b"model-server ended early; its last lines:" in said
