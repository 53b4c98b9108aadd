"""The demo as a person runs it, with the real model."""

import re
import shlex
import signal
import sys
from pathlib import Path

import psutil
import pytest

from demo.processes import Process, ProcessError, output_of
from support.endings import all_end_with

pytestmark = pytest.mark.asyncio(loop_scope="session")

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".cache" / "SmolLM2-135M-Instruct.Q4_1.gguf"
SHOWN_S = 240.0
"""A limit for what hangs: a slow machine takes long to start everything and to answer twice."""
COMMAND = [sys.executable, "-m", "demo", "--model", str(MODEL)]


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if not MODEL.exists():
        pytest.fail(f"there is no model at {MODEL}; try: make model")


async def test_shows_the_same_answer_both_ways_and_ends() -> None:
    said = await output_of([*COMMAND, "--once"], timeout_s=SHOWN_S)
    directly, through = re.findall(r"^asked .*:\n((?:  .*\n)+)", said, re.MULTILINE)
    assert len(directly.split()) > 10
    assert through == directly
    assert re.search(r"time to first token +\d+ ms +\d+ ms", said)
    assert re.search(r"tokens/s +\d+ +\d+", said)


async def test_stays_up_for_a_curl_line_until_ctrl_c(tmp_path: Path) -> None:
    demo = Process("demo", COMMAND, directory=tmp_path)
    async with demo:
        line = await demo.line("curl -N", timeout_s=SHOWN_S)
        await demo.line("Ctrl-C stops everything", SHOWN_S)
        parts = psutil.Process(demo.pid).children(recursive=True)
        assert len(parts) >= 4
        answer = await output_of([*shlex.split(line), "--silent", "--fail-with-body"])
        psutil.Process(demo.pid).send_signal(signal.SIGINT)
        assert await demo.ended(SHOWN_S) == 0
    assert answer.count("data: ") > 3
    assert answer.rstrip().endswith("data: [DONE]")
    assert not [part for part in parts if part.is_running()]


async def test_says_what_is_missing_when_a_part_does_not_come_up(tmp_path: Path) -> None:
    bad = tmp_path / "not-a-model.gguf"
    bad.write_bytes(b"nothing")
    with pytest.raises(ProcessError) as failed:
        await output_of([*COMMAND[:-1], str(bad), "--once"], timeout_s=SHOWN_S)
    assert "failed with exit code 1:" in str(failed.value)
    assert "model-server ended early; its last lines:" in str(failed.value)


async def test_every_part_ends_with_a_killed_demo(tmp_path: Path) -> None:
    scratch = {"TMPDIR": str(tmp_path)}
    async with Process("demo", COMMAND, directory=tmp_path, environ=scratch) as demo:
        await demo.line("Ctrl-C stops everything", SHOWN_S)
        left = await all_end_with(demo.pid)
    assert len(left) >= 8  # model server, relay, gateway, agent, and a watchdog for each
