"""`byoai-agent check`: every step from this host to the tunnel, one sentence each.

The steps stop at the first that fails, because those after it need it; only the model server
is looked at in any case. Nothing is changed: no certificate is renewed, and the link that is
made takes no stream. Whether the disk can be written is tried with a file that is removed again.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Final

from rich.console import Console

from byoai_agent import __version__
from byoai_agent.agent import named_upstreams
from byoai_agent.config import AgentConfig
from byoai_agent.control import TOKEN, Gateway, GatewayRefused
from byoai_agent.join import no_upstream_advice
from byoai_agent.links import link_failure
from byoai_agent.models import Catalogue
from byoai_agent.proxies import proxy_for
from byoai_agent.state import KeyPair, Membership, StateDirectory
from byoai_agent.upstreams import UpstreamPool, UpstreamWatch
from byoai_shared.assertion import sign_assertion
from byoai_shared.enrolment import TokenRequest, TokenResponse
from byoai_shared.errors import ByoaiError
from byoai_shared.identity import AgentIdentity, new_tunnel_id
from byoai_shared.keys import key_from_pem
from byoai_shared.link.session import connect
from byoai_shared.model_skills import model_for_text
from byoai_shared.protocol.control import Hello, Role
from byoai_shared.tls import Credentials, client_context

_TOLERATED_SKEW_S: Final = 60.0


class CheckFailed(ByoaiError):
    """A step found something wrong; the sentence says what to do."""


async def run(console: Console, config: AgentConfig, state: StateDirectory) -> int:
    """Run the steps; 0 if all went well."""
    check = _Check(config, state)
    steps = (check.state, check.gateway, check.token, check.relay)
    tunnel_ok = await _run(console, steps)
    disk_ok = await _run(console, (check.disk,) if check.has_read_state else ())
    models_ok = await _run(console, (check.upstream, check.model))
    is_well = tunnel_ok and disk_ok and models_ok
    if is_well:
        console.print("\nall is well: [bold]byoai-agent run[/] serves this host's models")
    return 0 if is_well else 1


async def _run(console: Console, steps: tuple[Callable[[], Awaitable[str]], ...]) -> bool:
    for step in steps:
        try:
            _say(console, "[green]✓[/]", await step())
        except (ByoaiError, TimeoutError) as error:
            _say(console, "[red]✗[/]", str(error) or "no answer in time")
            return False
    return True


def _say(console: Console, mark: str, sentence: str) -> None:
    console.print(f"{mark} ", end="")
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)


class _Check:
    """The steps, and what the later ones need of the earlier."""

    def __init__(self, config: AgentConfig, state: StateDirectory) -> None:
        self._config = config
        self._state = state
        self._membership: Membership | None = None
        self._link: KeyPair | None = None
        self._token: TokenResponse | None = None
        self._catalogue = Catalogue(cloud_models=config.allowed.cloud_models)

    @property
    def has_read_state(self) -> bool:
        """Whether there is an agent whose state can be read."""
        return self._membership is not None

    async def state(self) -> str:
        """The state can be read, by nobody else."""
        self._membership = self._state.membership()
        self._link = self._state.link()
        self._state.end_to_end()
        return f"this host has joined tunnel {self._membership.tunnel_id}"

    async def disk(self) -> str:
        """Renewed keys can be saved."""
        with self._state.reserved_room():
            return f"the state directory {self._state.path} can be written"

    async def gateway(self) -> str:
        """The gateway answers and is who it should be."""
        gateway = self._gateway()
        await gateway.greet()
        return f"the gateway at {gateway.url} answers{_by_proxy(gateway.url)}"

    async def token(self) -> str:
        """The gateway believes us."""
        membership, link, gateway = self._joined()[0], self._joined()[1], self._gateway()
        assertion = sign_assertion(
            identity=AgentIdentity(membership.tunnel_id, membership.agent_id),
            key=key_from_pem(link.key_pem),
            audience=gateway.endpoint(TOKEN),
            now=time.time(),
        )
        try:
            self._token = await gateway.token(TokenRequest(assertion=assertion))
        except GatewayRefused as refused:
            # By a wrong clock the assertion has expired, or is of the future: name the cause.
            _require_right_clock(refused.server_time)
            raise
        _require_right_clock(self._token.server_time)
        return "the gateway gave a token"

    async def relay(self) -> str:
        """One relay takes our link; it is not authenticated, so that it takes nothing over."""
        membership, link = self._joined()
        context = client_context(
            server_ca_pem=membership.services_ca_pem.encode(),
            credentials=Credentials(link.certificate_pem, link.key_pem),
        )
        hello = Hello(
            role=Role.AGENT,
            node=membership.agent_id,
            instance=new_tunnel_id(),
            software=f"byoai-agent/{__version__} check",
        )
        failures: list[str] = []
        for relay in self._token.relays if self._token else membership.relays:
            try:
                session = await connect(
                    relay, ssl_context=context, hello=hello, proxy=proxy_for(relay)
                )
            except ByoaiError as error:
                failures.append(link_failure(relay, error))
                continue
            await session.close()
            return f"the relay {relay} takes our link{_by_proxy(relay)}"
        raise CheckFailed(
            "; ".join(failures or ["the gateway names no relay"])
            + "; let this host reach it by TCP, or set HTTPS_PROXY to a proxy that does"
        )

    async def upstream(self) -> str:
        """A model server answers on this host."""
        remembered = self._membership.upstreams if self._membership else ()
        pool = UpstreamPool(connect_s=self._config.limits.connect_s)
        watch = UpstreamWatch(
            self._config,
            self._catalogue,
            pool,
            named=named_upstreams(self._config, remembered),
        )
        try:
            await watch.look()
        finally:
            pool.close()
        up = [one.target.url for one in self._catalogue.upstreams if one.is_up]
        if up:
            return f"model server at {', '.join(up)}"
        down = [f"{one.target.url}: {one.fault}" for one in self._catalogue.upstreams]
        raise CheckFailed("; ".join(down) or no_upstream_advice(sorted(watch.locked)))

    async def model(self) -> str:
        """It has at least one model, and the one that requests without a name mean."""
        names = self._catalogue.announced()
        if not names:
            raise CheckFailed(
                "the model server has no model yet: load one (with Ollama: ollama pull llama3.2)"
            )
        preferred = self._token.preferred_model if self._token else None
        registered = self._token.registered_model if self._token else None
        offers = f"it offers {', '.join(names[:5])}{' and more' if len(names) > 5 else ''}"
        if preferred is not None and self._catalogue.describe(preferred) is None:
            raise CheckFailed(
                f"{offers}, and not {preferred!r}, the model that you prefer in the settings; load "
                "it on this host, or prefer another (another agent of this tunnel may have it)"
            )
        known = registered is not None and self._catalogue.describe(registered) is not None
        lacks = (
            ""
            if known or registered is None
            else (f"; it does not have {registered!r}, which the tunnel was registered for")
        )
        wanted = tuple(filter(None, (preferred, registered if known else None)))
        unnamed = model_for_text(names, wanted)
        return f"{offers}{lacks}; a chat request that names no model gets {unnamed}"

    def _joined(self) -> tuple[Membership, KeyPair]:
        if self._membership is None or self._link is None:
            raise CheckFailed("join first: byoai-agent join CODE")
        return self._membership, self._link

    def _gateway(self) -> Gateway:
        membership, _ = self._joined()
        ca_pem = membership.gateway_ca_pem
        return Gateway(membership.gateway_url, ca_pem=ca_pem.encode() if ca_pem else None)


def _require_right_clock(server_time: float | None) -> None:
    skew_s = abs(server_time - time.time()) if server_time is not None else 0.0
    if skew_s > _TOLERATED_SKEW_S:
        raise CheckFailed(
            f"this host's clock differs from the gateway's by {skew_s:.0f} s; "
            "set it, since certificates depend on it"
        )


def _by_proxy(url: str) -> str:
    return " (through the proxy)" if proxy_for(url) else ""
