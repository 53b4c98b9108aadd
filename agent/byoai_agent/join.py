"""`byoai-agent join`: says what it does, step by step, and what to do next."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from rich.console import Console

from byoai_agent.agent import named_upstreams
from byoai_agent.config import AgentConfig
from byoai_agent.control import Gateway
from byoai_agent.enrol import Joined, enrol, former_agent, gateway_of, require_free
from byoai_agent.exits import OK
from byoai_agent.models import Catalogue
from byoai_agent.state import StateDirectory, StateError
from byoai_agent.upstreams import UpstreamPool, UpstreamWatch, target_of
from byoai_shared import joincode
from byoai_shared.joincode import JoinCode, JoinCodeError
from byoai_shared.runtime import INTERRUPTED, StopSignal

_TOLERATED_SKEW_S = 60.0
_SAVE_AGAIN_S: Final = 5.0
_SAVE_TRIES: Final = 120
"""The keys of a spent code are offered to a disk that does not take them for 10 minutes."""
_Result = TypeVar("_Result")


class Joining:
    """One run of `join`."""

    def __init__(
        self,
        console: Console,
        state: StateDirectory,
        config: AgentConfig,
        upstreams: tuple[str, ...],
        *,
        replace: bool,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._pause = pause
        self._console = console
        self._state = state
        self._config = config
        self._upstreams = upstreams
        self._replace = replace

    async def run(self, words: Sequence[str]) -> int:
        """Join; everything that can be checked before the code is spent comes first.

        `words` are the code, in as many parts as it was wrapped into.

        Raises:
            ByoaiError: with the sentence to show.
        """
        code = _decoded(words)
        for one in named_upstreams(self._config, self._upstreams):
            target_of(one)
        require_free(self._state, replace=self._replace)
        lock = self._state.lock()
        try:
            async with StopSignal() as stop:
                return await self._join(code, stop)
        finally:
            lock.release()

    async def _join(self, code: JoinCode, stop: StopSignal) -> int:
        """Three steps; a signal ends the first and the last, but not the one in between."""
        self._done(f"the join code is whole; it belongs to {code.gateway_url}")
        with self._state.reserved_room():  # before the code is spent
            found = await _unless(stop.requested, gateway_of(code))
            if found is None:
                self._warn("interrupted; nothing was changed, and the join code can still be used")
                return INTERRUPTED
            joined = await self._spend(code, found, stop)
        if joined is None:
            self._warn(
                "interrupted while the join code was used; if `byoai-agent run` finds no agent "
                "here, get a new code from the settings page"
            )
            return INTERRUPTED
        await _unless(stop.requested, self._tell(joined))
        self._console.print("Next:  [bold]byoai-agent run[/]", highlight=False)
        return OK

    async def _spend(
        self, code: JoinCode, found: tuple[Gateway, bytes | None], stop: StopSignal
    ) -> Joined | None:
        """Use the code and keep what came of it; None if a second signal insisted on the end."""
        work = asyncio.ensure_future(self._enrol(code, *found))
        if await _unless(stop.requested, asyncio.shield(work)) is None and not work.done():
            self._warn("the join code is being used; this ends in a moment (again: give it up)")
        return await _unless(stop.insisted, work)

    async def _enrol(self, code: JoinCode, gateway: Gateway, ca_pem: bytes | None) -> Joined:
        former = former_agent(self._state, code.tunnel_id)
        joined = await enrol(code, gateway, ca_pem, self._upstreams, replaces=former)
        self._state.release_room()  # its room is for the keys
        await self._save(joined)
        return joined

    async def _tell(self, joined: Joined) -> bool:
        membership = joined.membership
        self._done(f"joined tunnel {membership.tunnel_id}", of=membership.owner)
        self._done(f"keys made here and kept in {self._state.path}")
        skew_s = abs(joined.clock_offset_s)
        if skew_s > _TOLERATED_SKEW_S:
            self._warn(
                f"this host's clock differs from the gateway's by {skew_s:.0f} s; "
                "set it, since certificates depend on it"
            )
        self._console.print(
            f"\nkey fingerprint  [bold]{membership.key_fingerprint}[/]\n"
            "Compare it with the one on the tunnel's settings page.\n",
            highlight=False,
        )
        await self._show_upstreams()
        return True

    async def _save(self, joined: Joined) -> None:
        """Write the new agent; the code is spent, so a disk that fails now gets time to recover.

        Raises:
            StateError: it cannot be written, and there is no sense in waiting any longer.
        """
        for left in reversed(range(_SAVE_TRIES)):
            try:
                self._state.save(joined.membership, joined.link, joined.end_to_end)
            except StateError as error:
                if left == 0:
                    raise
                if left == _SAVE_TRIES - 1:
                    limit_min = _SAVE_TRIES * _SAVE_AGAIN_S / 60
                    self._warn(
                        f"{error}. The join code is used, so the keys are kept in memory and "
                        f"saved as soon as that is possible; waiting for up to {limit_min:.0f} min"
                    )
                await self._pause(_SAVE_AGAIN_S)
            else:
                return

    async def _show_upstreams(self) -> None:
        catalogue = Catalogue(cloud_models=self._config.allowed.cloud_models)
        pool = UpstreamPool(connect_s=self._config.limits.connect_s)
        named = named_upstreams(self._config, self._upstreams)
        watch = UpstreamWatch(self._config, catalogue, pool, named=named)
        try:
            await watch.look()
        finally:
            pool.close()
        for one in catalogue.upstreams:
            names = ", ".join(str(entry["id"]) for entry in one.models[:5])
            if one.is_up:
                self._done(f"model server at {one.target.url}: {names or 'no model yet'}")
            else:
                self._warn(f"model server at {one.target.url}: {one.fault}")
        if not catalogue.upstreams:
            self._warn(no_upstream_advice(sorted(watch.locked)))

    def _done(self, sentence: str, of: str = "") -> None:
        self._console.print("[green]✓[/] ", end="")
        self._console.print(f"{sentence} of {of}" if of else sentence, markup=False, soft_wrap=True)

    def _warn(self, sentence: str) -> None:
        self._console.print("[yellow]![/] ", end="")
        self._console.print(sentence, markup=False, soft_wrap=True)


def _decoded(words: Sequence[str]) -> JoinCode:
    try:
        return joincode.decode(" ".join(words))
    except JoinCodeError as error:
        if not any(word.startswith("--") for word in words):
            raise
        sentence = f"{error}; if you gave an option, look it up with: byoai-agent join --help"
        raise JoinCodeError(sentence) from None


async def _unless(stopped: asyncio.Event, work: Awaitable[_Result]) -> _Result | None:
    """Return what `work` gives, or cancel it and return None once `stopped` is set."""
    running = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stopped.wait())
    try:
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        running.cancel()
        await asyncio.wait((running,))
        return None
    finally:
        stopping.cancel()
        running.cancel()


def no_upstream_advice(locked_ports: list[int]) -> str:
    """What to do when no model server was found."""
    if locked_ports:
        port = locked_ports[0]
        return (
            f"the model server on port {port} wants an API key: name both in agent.toml, as "
            f'[[upstreams]] url = "http://127.0.0.1:{port}" and key = "…"'
        )
    return (
        "no model server answers on this host yet; start Ollama, vLLM or another, "
        "or name it: byoai-agent run --upstream http://127.0.0.1:8000"
    )
