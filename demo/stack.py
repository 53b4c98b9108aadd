"""Gateway, relays and agents as separate processes in one directory, through their own commands.

The parts are made the way an operator makes them: the gateway creates its authorities and issues
the relays' certificates, a user registers a tunnel through the API, an agent joins with the code.
Nothing here reaches into a program or its database. Ports are the kernel's choice at the first
start and kept after it, so that a part can be restarted where the others expect it.
"""

import asyncio
import json
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from .processes import Event, Process, ProcessError, output_of
from .settings import Settings, Value, write_settings

HOST = "127.0.0.1"
API_S = 30.0
ONLINE_S = 60.0
STATUS_S = 0.02
PREFERENCES = "/api/user-preferences/ai-provider"
USER_PLAN = "pro"
RELAY_FILES = {
    "certificate": "relay.pem",
    "key": "relay-key.pem",
    "agents_ca": "agents-ca.pem",
    "services_ca": "services-ca.pem",
}


@dataclass(frozen=True, slots=True)
class HttpsFiles:
    """What the gateway's public listener needs for HTTPS under a private CA, as PEM files."""

    certificate: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class DefaultProvider:
    """The operator's own AI service, which users have unless they choose otherwise."""

    base_url: str
    model: str
    key: str | None = field(default=None, repr=False)

    @property
    def settings(self) -> Settings:
        """As the gateway's settings say it."""
        settings: dict[str, Value] = {
            "default_provider.base_url": self.base_url,
            "default_provider.model": self.model,
        }
        if self.key is not None:
            settings["default_provider.key"] = self.key
        return settings


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A registered tunnel and what its user needs."""

    user: str
    token: str = field(repr=False)
    tunnel_id: str
    join_code: str = field(repr=False)


class Stack:
    """One gateway, some relays and any number of agents; ends them all when it is left.

    `gateway`, `relay` and `agent` are settings laid over those that let the parts find each
    other.
    """

    def __init__(
        self,
        directory: Path,
        *,
        relays: int = 1,
        gateway: Settings | None = None,
        relay: Settings | None = None,
        agent: Settings | None = None,
        https: HttpsFiles | None = None,
        default_provider: DefaultProvider | None = None,
    ) -> None:
        self.directory = directory
        self.gateway_url = f"{'https' if https else 'http'}://{HOST}:{free_port()}"
        self.gateway = self._program("gateway", "byoai-gateway", "serve")
        self.relays = [
            self._program(f"relay-{n}", "byoai-relay", "serve") for n in range(1, relays + 1)
        ]
        self.agents: dict[str, Process] = {}
        self._gateway_settings = gateway or {}
        self._relay_settings = relay or {}
        self._agent_settings = agent or {}
        self._https = https
        self._default_provider = default_provider
        self._relay_addresses: dict[str, Event] = {}
        self._parts = AsyncExitStack()

    def _program(self, name: str, program: str, *arguments: str) -> Process:
        command = [command_path(program), *arguments, "--config", str(self._config(name))]
        return Process(name, command, directory=self.directory)

    def _config(self, name: str) -> Path:
        return self.directory / f"{name}.toml"

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self._parts.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._parts.aclose()

    async def start(self) -> None:
        """Relays first: the gateway's settings name their addresses."""
        self._write_gateway_settings()
        for relay in self.relays:
            await self._start_relay(relay)
        self._write_gateway_settings()
        await self._started(self.gateway)

    async def _started(self, part: Process) -> Event:
        """Start a part that is ended, in reverse order, when the stack is left."""
        self._parts.push_async_callback(part.stop)
        await part.start()
        return await part.ready()

    async def _start_relay(self, relay: Process) -> None:
        """With a certificate of its own; what the kernel chose as ports is kept."""
        await output_of(
            [
                command_path("byoai-gateway"),
                *("issue-relay-certificate", relay.name, "--host", HOST),
                *("--out", str(self.directory / relay.name), "--create"),
                *("--config", str(self._config("gateway"))),
            ]
        )
        self._write_relay_settings(relay.name, {})
        ready = await self._started(relay)
        self._relay_addresses[relay.name] = ready
        self._write_relay_settings(relay.name, ready)

    def _write_relay_settings(self, name: str, bound: Event) -> None:
        home = self.directory / name
        settings: dict[str, Value] = {}
        for listener in ("agents", "gateways", "ops"):
            settings[f"{listener}.host"] = HOST
            settings[f"{listener}.port"] = port_of(bound[listener]) if bound else 0
        for setting, file in RELAY_FILES.items():
            settings[f"identity.{setting}"] = str(home / file)
        write_settings(self._config(name), {**settings, **self._relay_settings})

    def _write_gateway_settings(self) -> None:
        settings: dict[str, Value] = {
            "listen.host": HOST,
            "listen.port": port_of(self.gateway_url),
            "ops.port": 0,
            "public.url": self.gateway_url,
            "database.url": f"sqlite+aiosqlite:///{self.directory / 'gateway.db'}",
            "vault.key_file": str(self.directory / "vault.key"),
            "users.secret_file": str(self._users_secret()),
            "relays": [
                {
                    "address": f"wss://{ready['agents']}",
                    "gateway_address": f"wss://{ready['gateways']}",
                }
                for ready in self._relay_addresses.values()
            ],
        }
        if self._https:
            settings["listen.certificate"] = str(self._https.certificate)
            settings["listen.key"] = str(self._https.key)
            settings["listen.ca"] = str(self._https.ca)
        if self._default_provider:
            settings |= self._default_provider.settings
        write_settings(self._config("gateway"), {**settings, **self._gateway_settings})

    def _users_secret(self) -> Path:
        """Stands for the main application, which signs the users' tokens."""
        path = self.directory / "users-secret"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text("only good for as long as this folder exists")
        return path

    def relay_address(self, relay: Process) -> str:
        """Where agents reach it."""
        return f"wss://{self._relay_addresses[relay.name]['agents']}"

    async def user_token(self, user: str, plan: str = USER_PLAN) -> str:
        """A user's token, minted by the gateway's development command."""
        command = [
            command_path("byoai-gateway"),
            *("dev-token", "--user", user, "--plan", plan),
            *("--config", str(self._config("gateway"))),
        ]
        return (await output_of(command)).strip()

    async def call(
        self, method: str, path: str, token: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """One call of the gateway's API.

        Raises:
            ProcessError: it was not answered with success.
        """
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(API_S)) as session,
            session.request(
                method,
                self.gateway_url + path,
                headers={"authorization": f"Bearer {token}"},
                json=body,
                ssl=ssl.create_default_context(cafile=self._https.ca) if self._https else True,
            ) as response,
        ):
            text = await response.text()
        if not response.ok:
            raise ProcessError(f"{method} {path} was answered {response.status}: {text}")
        answer: dict[str, Any] = json.loads(text)
        return answer

    async def register(self, user: str) -> Tunnel:
        """A new tunnel for a user."""
        token = await self.user_token(user)
        model = {"name": "smollm2", "capabilities": ["text-generation", "embeddings"]}
        answer = await self.call("POST", "/api/tunnel/register", token, {"modelInfo": model})
        return Tunnel(user, token, answer["tunnelId"], answer["joinCode"])

    async def choose(self, token: str, preferences: Mapping[str, Any]) -> dict[str, Any]:
        """Save which AI a user's requests go to; answers the preferences as they are now."""
        return await self.call("POST", PREFERENCES, token, preferences)

    async def join(self, code: str, name: str, upstreams: Sequence[str]) -> str:
        """Enrol an agent; answers what the command says to its user."""
        return await output_of(
            [
                *(command_path("byoai-agent"), "join", code),
                *("--state-dir", str(self.state_directory(name))),
                *(argument for url in upstreams for argument in ("--upstream", url)),
            ]
        )

    def state_directory(self, agent: str) -> Path:
        """Where an agent keeps who it is."""
        return self.directory / f"{agent}-state"

    async def start_agent(self, name: str) -> Process:
        """Run an agent that has joined; it remembers its model servers."""
        write_settings(self._config(name), {"log.form": "json", **self._agent_settings})
        command = [
            *(command_path("byoai-agent"), "run", "--config", str(self._config(name))),
            *("--state-dir", str(self.state_directory(name))),
        ]
        self.agents[name] = Process(name, command, directory=self.directory)
        await self._started(self.agents[name])
        return self.agents[name]

    async def open_tunnel(self, user: str, upstreams: Sequence[str]) -> Tunnel:
        """Register, choose, join, run: one user's own AI, online when this returns."""
        tunnel = await self.register(user)
        await self.choose(tunnel.token, {"aiProvider": "self-hosted", "tunnelId": tunnel.tunnel_id})
        await self.join(tunnel.join_code, f"agent-{user}", upstreams)
        await self.start_agent(f"agent-{user}")
        await self.online(tunnel)
        return tunnel

    async def is_online(self, tunnel: Tunnel) -> bool:
        """What the API says about it now."""
        path = f"/api/tunnel/status/{tunnel.tunnel_id}"
        return bool((await self.call("GET", path, tunnel.token))["online"])

    async def online(self, tunnel: Tunnel) -> None:
        """Wait until the gateway has learnt from a relay that the tunnel can be used."""
        try:
            async with asyncio.timeout(ONLINE_S):
                # The API has no push, and its answer is what a user goes by.
                while not await self.is_online(tunnel):  # noqa: ASYNC110
                    await asyncio.sleep(STATUS_S)
        except TimeoutError as error:
            agent = self.agents[f"agent-{tunnel.user}"]
            raise ProcessError(f"the tunnel did not come online{agent.last_lines()}") from error


def command_path(program: str) -> str:
    """The command as installed beside this Python."""
    path = Path(sys.executable).with_name(program)
    if not path.exists():
        raise ProcessError(f"{program} is not installed in {path.parent}; try: make test")
    return str(path)


def free_port() -> int:
    """A port that nobody listens on, chosen by the kernel."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def port_of(address: str) -> int:
    """The port at the end of an address or URL."""
    return int(address.rpartition(":")[2])
