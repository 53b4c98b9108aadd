"""The commands as people run them: real processes against a gateway to order."""

import asyncio
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import msgspec
import pytest

from byoai_agent.exits import FAILED, FATAL, MISUSED, OK
from byoai_agent.statusfile import AgentReport, LinkReport, UpstreamReport
from byoai_shared import joincode
from byoai_shared.http1.request import ServerRequest
from byoai_shared.identity import new_tunnel_id
from byoai_shared.joincode import JoinCode
from byoai_shared.runtime import INTERRUPTED
from byoai_shared.secret import Secret
from support.agent_commands import (
    AGENT,
    ENDED_S,
    SECRET,
    agent,
    code_of,
    joined,
    outcome_of,
    started,
)
from support.fake_gateway import FakeGateway, Refusing, running
from support.model_server import FakeModelServer


async def test_joining_says_what_it_does_and_what_is_next(
    gateway: FakeGateway, server: FakeModelServer, state: str
) -> None:
    code = code_of(gateway)
    ended = await agent("join", code, "--state-dir", state, "--upstream", server.url + "/v1")
    assert ended.code == OK, ended.said
    assert gateway.url in ended.out
    assert "of alice" in ended.out
    assert "key fingerprint SHA256:" in ended.said
    assert f"model server at {server.url}: fake-model" in ended.said
    assert "Next: byoai-agent run" in ended.said
    assert SECRET not in ended.said
    assert code not in ended.said
    again = await agent("join", code_of(gateway), "--state-dir", state)
    assert again.code == FATAL
    assert "--replace" in again.said
    assert len(gateway.enrolled) == 1
    replaced = await agent("join", code_of(gateway), "--state-dir", state, "--replace")
    assert replaced.code == OK
    assert len(gateway.enrolled) == 2


async def test_a_wrong_clock_is_told_when_joining(gateway: FakeGateway, state: str) -> None:
    gateway.clock_offset_s = -7200
    ended = await agent("join", code_of(gateway), "--state-dir", state)
    assert ended.code == OK
    assert re.search(r"clock differs from the gateway's by 7(199|20\d) s", ended.said)


async def test_a_mistyped_code_is_found_before_anything_is_sent(
    gateway: FakeGateway, state: str
) -> None:
    code = code_of(gateway)
    wrong = code[:-6] + ("A" if code[-6] != "A" else "B") + code[-5:]
    ended = await agent("join", wrong, "--state-dir", state)
    assert ended.code == MISUSED
    assert "copy all of it again" in ended.said
    assert gateway.calls == []
    assert not Path(state).exists()


async def test_a_mistyped_model_server_does_not_cost_the_code(
    gateway: FakeGateway, state: str
) -> None:
    """It would be remembered, and keep every later start from working."""
    ended = await agent("join", code_of(gateway), "--state-dir", state, "--upstream", "ftp://x")
    assert ended.code == MISUSED
    assert "http://127.0.0.1:8000" in ended.said
    assert gateway.calls == []
    assert not Path(state).exists()


def wrapped(code: str) -> list[list[str]]:
    """What a shell makes of a code that was pasted with something in it."""
    middle = len(code) // 2
    head, tail = code[:middle], code[middle:]
    return [
        [head, tail],
        [f"{head} {tail}"],
        [f"{head}\n  {tail}\n"],
        [f"\u201c{head}\u200b{tail}\u201d"],
        [f"'{head}\u00a0{tail}'"],
        [f"<{code}>"],
        [code[: code.index("-", 8)], code[code.index("-", 8) :]],
        [*code.partition("_")],
    ]


async def test_a_code_that_was_wrapped_is_put_together(gateway: FakeGateway, state: str) -> None:
    code = code_of(gateway)
    while "-" not in code[8:]:
        code = code_of(gateway)
    for words in wrapped(code):
        ended = await agent("join", *words, "--state-dir", state, "--replace")
        assert ended.code == OK, (words, ended.said)
    assert len(gateway.enrolled) == len(wrapped(code))


@pytest.mark.parametrize(
    "command",
    [
        ("run", "{code}"),
        ("run", "{head}", "{tail}"),
        ("{code}",),
        ("{head}", "{tail}"),
        ("check", "{code}"),
        ("status", "{code}", "--json"),
        ("join", "{head}"),
        ("join", "{head}", "and", "more"),
        ("join", "{code}", "--upsteam", "http://x"),
        ("join", "{code}", "--state-dir"),
        ("jion", "{code}"),
        ("join", "{code}", "{code}"),
    ],
)
async def test_no_part_of_a_code_is_printed(
    gateway: FakeGateway, command: tuple[str, ...], state: str
) -> None:
    code = code_of(gateway)
    head, tail = code[:60], code[60:]
    words = [word.format(code=code, head=head, tail=tail) for word in command]
    ended = await agent(*words, BYOAI_AGENT_STATE_DIR=state)
    assert ended.code == MISUSED
    parts = [code[at : at + 8] for at in range(7, len(code) - 8)]
    assert not [part for part in parts if part in ended.said]
    assert "Traceback" not in ended.said
    assert gateway.calls == []


class Holding(FakeGateway):
    """Holds the answers to one call back until a test lets them go."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.held = path
        self.came = asyncio.Event()
        self.free = asyncio.Event()

    async def answer(self, request: ServerRequest, path: str) -> bytes:
        made = await super().answer(request, path)
        if path == self.held:
            self.came.set()
            await self.free.wait()
        return made


STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("stop", STOPS)
async def test_a_signal_before_the_code_is_used_keeps_it(stop: signal.Signals, state: str) -> None:
    held = Holding("/agent/v1/ca")
    async with running(held):
        code = joincode.encode(JoinCode(held.url, new_tunnel_id(), Secret(SECRET), bytes(32)))
        command = (*AGENT, "join", code, "--state-dir", state)
        async with started(*command) as process, asyncio.timeout(ENDED_S):
            await held.came.wait()
            process.send_signal(stop)
            out, err = await process.communicate()
    assert process.returncode == INTERRUPTED
    assert b"the join code can still be used" in out
    assert b"Traceback" not in err
    assert held.enrolled == []


@pytest.mark.parametrize("stop", STOPS)
async def test_a_signal_while_the_code_is_used_does_not_waste_it(
    stop: signal.Signals, state: str
) -> None:
    held = Holding("/agent/v1/enrol")
    async with running(held):
        command = (*AGENT, "join", code_of(held), "--state-dir", state)
        async with started(*command) as process, asyncio.timeout(ENDED_S):
            assert process.stdout is not None
            await held.came.wait()
            process.send_signal(stop)
            while b"being used" not in await process.stdout.readline():
                pass
            held.free.set()
            out, err = await process.communicate()
    assert process.returncode == OK
    assert b"byoai-agent run" in out
    assert b"Traceback" not in err
    assert (Path(state) / "agent.json").exists()


async def test_a_second_signal_gives_the_code_up(state: str) -> None:
    held = Holding("/agent/v1/enrol")
    async with running(held):
        command = (*AGENT, "join", code_of(held), "--state-dir", state)
        async with started(*command) as process, asyncio.timeout(ENDED_S):
            assert process.stdout is not None
            await held.came.wait()
            process.send_signal(signal.SIGINT)
            while b"being used" not in await process.stdout.readline():
                pass
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
        held.free.set()
    assert process.returncode == INTERRUPTED
    assert b"get a new code" in out
    assert b"Traceback" not in err
    assert not (Path(state) / "agent.json").exists()


@pytest.mark.parametrize("stop", STOPS)
async def test_a_signal_while_the_first_token_is_waited_for(
    stop: signal.Signals, state: str
) -> None:
    held = Holding("/agent/v1/token")
    async with running(held):
        await joined(held, state)
        async with (
            started(*AGENT, "run", "--state-dir", state) as process,
            asyncio.timeout(ENDED_S),
        ):
            await held.came.wait()
            process.send_signal(stop)
            out, err = await process.communicate()
        held.free.set()
    assert process.returncode == OK
    assert b"Traceback" not in out + err


async def test_a_signal_ends_check_without_a_traceback(state: str) -> None:
    held = Holding("/agent/v1/token")
    async with running(held):
        await joined(held, state)
        async with (
            started(*AGENT, "check", "--state-dir", state) as process,
            asyncio.timeout(ENDED_S),
        ):
            await held.came.wait()
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
        held.free.set()
    assert process.returncode == -signal.SIGINT, "130 in a shell"
    assert b"Traceback" not in out + err


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("http://user:pa#ss@10.99.0.1:3128", "# as %23"),
        ("http://", "has no host"),
        ("http://10.99.0.1:99999", "from 1 to 65535"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
async def test_a_proxy_that_cannot_be_used_is_explained(
    gateway: FakeGateway, state: str, proxy: str, words: str, command: str
) -> None:
    await joined(gateway, state)
    file = Path(state) / "agent.json"
    membership = json.loads(file.read_bytes())
    membership["gateway_url"] = "https://gateway.example"
    file.write_text(json.dumps(membership))
    ended = await agent(command, "--state-dir", state, HTTPS_PROXY=proxy)
    assert ended.code == (MISUSED if command == "run" else FAILED)
    assert words in ended.said
    assert "Traceback" not in ended.said
    assert "pa#" not in ended.said


async def test_a_refusal_is_one_line_so_that_its_command_can_be_copied(tmp_path: Path) -> None:
    where = tmp_path / ("long" * 20)
    ended = await agent("run", "--state-dir", str(where), COLUMNS="80")
    (line,) = ended.err.splitlines()
    assert line.endswith("byoai-agent join CODE")


async def test_a_used_code_says_so_and_leaves_nothing(gateway: FakeGateway, state: str) -> None:
    gateway.refusals = [Refusing(409, "join_code_used", "this code was used; get a new one")]
    ended = await agent("join", code_of(gateway), "--state-dir", state)
    assert ended.code == FATAL
    assert "get a new one" in ended.said
    assert not (Path(state) / "agent.json").exists()


async def test_a_gateway_that_is_away_is_worth_another_try(state: str) -> None:
    gone = FakeGateway()
    async with running(gone):
        code = code_of(gone)
    ended = await agent("join", code, "--state-dir", state)
    assert ended.code == FAILED
    assert "cannot be reached" in ended.said


async def test_running_without_having_joined(state: str) -> None:
    ended = await agent("run", "--state-dir", state)
    assert ended.code == FATAL
    assert "join first: byoai-agent join CODE" in ended.said
    assert "Traceback" not in ended.said


async def test_a_revoked_tunnel_ends_the_agent_for_good(gateway: FakeGateway, state: str) -> None:
    await joined(gateway, state)
    gateway.refusals = [Refusing(403, "tunnel_revoked", "this tunnel was revoked")]
    ended = await agent("run", "--state-dir", state)
    assert ended.code == FATAL
    assert "this tunnel was revoked" in ended.err
    assert "Traceback" not in ended.said
    status = await agent("status", "--state-dir", state)
    assert "this tunnel was revoked" in status.said
    assert "Start it" not in status.said


async def test_a_running_agent_tells_its_troubles_and_stops_when_asked(
    gateway: FakeGateway, server: FakeModelServer, state: str
) -> None:
    await joined(gateway, state, "--upstream", server.url)
    run = (*AGENT, "run", "--state-dir", state)
    async with started(*run, BYOAI_AGENT_LOG__FORM="json") as process, asyncio.timeout(ENDED_S):
        assert process.stderr is not None
        lines: list[dict[str, object]] = []
        while not any(line["event"] == "link.unreachable" for line in lines):
            lines.append(json.loads(await process.stderr.readline()))
        second = await agent("run", "--state-dir", state)
        assert second.code == FAILED  # the first one may end, so another start may succeed
        assert "another byoai-agent runs" in second.said
        anew = await agent("join", code_of(gateway), "--state-dir", state, "--replace")
        assert (anew.code, len(gateway.enrolled)) == (FAILED, 1)
        assert "stop it first" in anew.said
        status = await agent("status", "--state-dir", state, "--json")
        assert status.code == FAILED
        report = msgspec.json.decode(status.out, type=AgentReport)
        assert [one.models for one in report.upstreams] == [("fake-model", "other/fake-model")]
        assert not report.links[0].is_up
        process.send_signal(signal.SIGTERM)
        _, err = await process.communicate()
        assert process.returncode == OK
        lines += [json.loads(line) for line in err.splitlines()]
    events = [line["event"] for line in lines]
    assert events[:3] == ["agent.starting", "upstream.found", "token.refreshed"]
    assert "agent.stopping" in events
    assert all("dropped" not in line for line in lines)
    unreachable = next(line for line in lines if line["event"] == "link.unreachable")
    assert "trying again in" in str(unreachable["reason"])
    stopped = await agent("status", "--state-dir", state)
    assert (stopped.code, "the agent does not run" in stopped.said) == (FAILED, True)


async def test_checking_names_the_first_step_that_fails(
    gateway: FakeGateway, server: FakeModelServer, state: str
) -> None:
    nothing = await agent("check", "--state-dir", state, "--upstream", server.url)
    assert nothing.code == FAILED
    assert "✗ no agent lives in" in nothing.said
    assert "✓ it offers fake-model" in nothing.said
    await joined(gateway, state, "--upstream", server.url)
    ended = await agent("check", "--state-dir", state)
    assert ended.code == FAILED
    assert "✓ this host has joined tunnel" in ended.said
    assert f"✓ the gateway at {gateway.url} answers" in ended.said
    assert "✓ the gateway gave a token" in ended.said
    assert "✗ the relay wss://127.0.0.1:1 cannot be reached: nobody listens there" in ended.said
    assert "HTTPS_PROXY" in ended.said
    assert "✓ it offers fake-model, other/fake-model" in ended.said


@pytest.mark.parametrize(
    ("registered", "preferred", "mark", "words"),
    [
        ("fake-model", None, "✓", "a chat request that names no model gets fake-model"),
        ("other/fake-model", None, "✓", "names no model gets other/fake-model"),
        ("small", None, "✓", "does not have 'small', which the tunnel was registered for"),
        ("small", None, "✓", "names no model gets fake-model"),
        ("fake-model", "other/fake-model", "✓", "names no model gets other/fake-model"),
        ("fake-model", "gone", "✗", "and not 'gone', the model that you prefer"),
    ],
)
async def test_checking_tells_which_model_requests_without_a_name_get(
    gateway: FakeGateway,
    server: FakeModelServer,
    state: str,
    registered: str,
    preferred: str | None,
    mark: str,
    words: str,
) -> None:
    gateway.registered_model, gateway.preferred_model = registered, preferred
    await joined(gateway, state, "--upstream", server.url)
    said = (await agent("check", "--state-dir", state)).said
    assert f"{mark} it offers fake-model, other/fake-model" in said
    assert words in said


@pytest.mark.parametrize("offset_s", [-7200, 7200])
async def test_checking_names_a_wrong_clock_not_what_follows_from_it(
    gateway: FakeGateway, state: str, offset_s: int
) -> None:
    await joined(gateway, state)
    gateway.clock_offset_s = offset_s
    ended = await agent("check", "--state-dir", state)
    assert ended.code == FAILED
    assert re.search(r"clock differs from the gateway's by 7(199|20\d) s; set it", ended.said)


@pytest.mark.skipif(os.name != "posix", reason="no mode bits on Windows")
async def test_a_state_that_others_can_read_is_refused(gateway: FakeGateway, state: str) -> None:
    await joined(gateway, state)
    (Path(state) / "link.pem").chmod(0o644)
    ended = await agent("run", "--state-dir", state)
    assert ended.code == FATAL
    assert "others can read" in ended.said
    assert "chmod 600" in ended.said


async def test_status_reads_the_report(gateway: FakeGateway, state: str) -> None:
    await joined(gateway, state)
    now = time.time()
    report = AgentReport(
        process=1,
        is_running=True,
        written_at=now,
        tunnel_id="t",
        links=(
            LinkReport(relay="wss://a", is_up=True, round_trip_ms=12.5),
            LinkReport(relay="wss://b", is_up=False, fault="no answer in time"),
        ),
        upstreams=(UpstreamReport(url="http://x", is_up=False, fault="nobody listens there"),),
        in_flight=3,
        capacity=64,
        token_expires_at=int(now) + 605,
        certificate_expires_at=int(now) + 7205,
        problems=("another host uses this agent's identity: gpu-2",),
    )
    path = Path(state) / "status.json"
    path.touch(mode=0o600)
    path.write_bytes(msgspec.json.encode(report))
    ended = await agent("status", "--state-dir", state)
    assert ended.code == OK
    for sentence in (
        "wss://a: connected, round trip 12.5 ms",
        "wss://b: no answer in time",
        "http://x: nobody listens there",
        "3 of 64 running, 0 waiting",
        "valid for 10 min",
        "valid for 2 h 0 min",
        "another host uses this agent's identity: gpu-2",
    ):
        assert sentence in ended.said


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("BYOAI_AGENT_LIMITS__MAX_BODY", "5", "did you mean `limits.max_body_bytes`"),
        ("BYOAI_AGENT_LIMITS__CONCURRENT_REQUESTS", "0", "limits.concurrent_requests"),
        ("BYOAI_AGENT_UPSTREAM", "ftp://x", "is not an address"),
        ("BYOAI_AGENT_ALLOWED__GROUPS", "image", "there are: audio-speech"),
    ],
)
async def test_a_wrong_setting_is_named(
    gateway: FakeGateway, state: str, variable: str, value: str, sentence: str
) -> None:
    await joined(gateway, state)
    ended = await agent("run", "--state-dir", state, **{variable: value})
    assert ended.code == MISUSED
    assert sentence in ended.said


async def test_settings_are_documented(tmp_path: Path) -> None:
    ended = await agent("settings")
    assert ended.code == OK
    assert "first_byte_s = 600.0" in ended.out
    assert "[limits]" in ended.out


async def test_the_agent_needs_nothing_of_the_gateways_or_relays() -> None:
    program = (
        "import sys; from byoai_agent import cli, running;"
        "print([m for m in ('aiohttp', 'sqlalchemy', 'byoai_gateway', 'byoai_relay')"
        " if m in sys.modules])"
    )
    shown = await outcome_of(sys.executable, "-c", program)
    assert (shown.code, shown.out.strip()) == (OK, "[]")
