"""The chains that are compared: nothing in between, ours to a tunnel and to a provider, `ssh -R`.

A chain is an address to send requests to, the headers they need, and the processes in between.
All stand before the same upstream in the same run.
"""

import os
import pwd
import shutil
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from demo.processes import Process, output_of
from demo.settings import Settings
from demo.stack import HOST, DefaultProvider, Stack, free_port, port_of

from .comparisons import DIRECT, OURS, ROUTER, SSH

STREAMS = 1024
UPLOAD_BYTES = 1024 * 1024 * 1024
RELAY_LIMITS: Settings = {
    "limits.streams_per_tunnel": STREAMS,
    "limits.opens_per_s": STREAMS,
    "limits.opens_burst": STREAMS,
}
AGENT_LIMITS: Settings = {
    "limits.concurrent_requests": STREAMS,
    "limits.max_body_bytes": UPLOAD_BYTES,
}
GATEWAY_LIMITS: Settings = {
    "limits.max_body_bytes": UPLOAD_BYTES,
    "limits.requests_per_minute": 100_000_000,
    "limits.concurrent_requests": STREAMS,
}

SSHD_CONFIG = """\
ListenAddress 127.0.0.1:{port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
StrictModes no
UsePAM yes
PasswordAuthentication no
AllowTcpForwarding remote
MaxSessions 1024
MaxStartups 1024
"""


@dataclass(frozen=True, slots=True)
class Chain:
    """Where the load goes in and what stands between it and the upstream."""

    name: str
    port: int
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    processes: Mapping[str, list[int]] = field(default_factory=dict[str, list[int]])


@asynccontextmanager
async def direct(upstream_port: int, directory: Path) -> AsyncGenerator[Chain, None]:
    """Nothing in between: the scale for everything else."""
    yield Chain(DIRECT, upstream_port)


@asynccontextmanager
async def ours(upstream_port: int, directory: Path) -> AsyncGenerator[Chain, None]:
    """Gateway, relay and agent, with room for all streams in one tunnel."""
    stack = Stack(directory, gateway=GATEWAY_LIMITS, relay=RELAY_LIMITS, agent=AGENT_LIMITS)
    async with stack:
        tunnel = await stack.open_tunnel("bench", [f"http://{HOST}:{upstream_port}"])
        processes = {
            "gateway": [stack.gateway.pid],
            "relay": [stack.relays[0].pid],
            "agent": [stack.agents["agent-bench"].pid],
        }
        headers = {"authorization": f"Bearer {tunnel.token}"}
        yield Chain(OURS, port_of(stack.gateway_url), headers, processes)


@asynccontextmanager
async def router(upstream_port: int, scratch: Path) -> AsyncGenerator[Chain, None]:
    """The gateway alone, with the upstream as the provider of everybody who chose none."""
    directory = scratch / "router"
    directory.mkdir()
    provider = DefaultProvider(f"http://{HOST}:{upstream_port}/v1", "bench")
    stack = Stack(directory, relays=0, gateway=GATEWAY_LIMITS, default_provider=provider)
    async with stack:
        headers = {"authorization": f"Bearer {await stack.user_token('bench')}"}
        processes = {"gateway": [stack.gateway.pid]}
        yield Chain(ROUTER, port_of(stack.gateway_url), headers, processes)


def ssh_is_installed() -> bool:
    """Whether an `ssh -R` can be built here."""
    return all(shutil.which(name, path=search_path()) for name in ("ssh", "sshd", "ssh-keygen"))


def search_path() -> str:
    """`sshd` lives where ordinary users do not look."""
    return os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"


def program(name: str) -> str:
    """The full path of an installed program; `sshd` insists on one."""
    path = shutil.which(name, path=search_path())
    assert path is not None  # `ssh_is_installed` was asked
    return path


def sshd_user() -> str:
    """Who runs the throw-away sshd: as root it would want directories of the system's."""
    return "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


@asynccontextmanager
async def ssh_reverse(upstream_port: int, scratch: Path) -> AsyncGenerator[Chain, None]:
    """`sshd` and `ssh -R` on loopback, unprivileged, with keys of their own."""
    directory = scratch / "ssh"
    directory.mkdir()
    user, sshd_port, port = sshd_user(), free_port(), free_port()
    await make_keys(directory)
    config = directory / "sshd_config"
    config.write_text(SSHD_CONFIG.format(port=sshd_port, directory=directory))
    if os.geteuid() == 0:
        for path in (directory, *directory.iterdir()):
            shutil.chown(path, user)
    as_user = [program("setpriv"), f"--reuid={user}", "--clear-groups"] if os.geteuid() == 0 else []
    sshd = [*as_user, program("sshd"), "-D", "-e", "-f", str(config)]
    ssh = [
        *as_user,
        program("ssh"),
        *("-N", "-F", "none", "-v", "-p", str(sshd_port), "-i", str(directory / "user_key")),
        *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
        *("-o", "ExitOnForwardFailure=yes", "-o", "IdentitiesOnly=yes"),
        *("-R", f"127.0.0.1:{port}:127.0.0.1:{upstream_port}", f"{user}@127.0.0.1"),
    ]
    async with AsyncExitStack() as parts:
        server = Process("sshd", sshd, directory=directory)
        await parts.enter_async_context(server)
        await server.line("Server listening on")
        client = Process("ssh", ssh, directory=directory)
        await parts.enter_async_context(client)
        await client.line("remote forward success")
        sessions = [child.pid for child in psutil.Process(server.pid).children(recursive=True)]
        yield Chain(SSH, port, {}, {"relay": sessions, "agent": [client.pid]})


async def make_keys(directory: Path) -> None:
    """A host key and a user key, good for this run."""
    for name in ("host_key", "user_key"):
        path = str(directory / name)
        await output_of([program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", path])
    shutil.copy(directory / "user_key.pub", directory / "authorized_keys")
