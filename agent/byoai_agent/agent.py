"""One running agent: its parts put together, started in order and stopped in order.

Start: the state is checked and locked, the model servers are looked for, the gateway gives a
token, and only then the links come up, so that the first request finds everything in place.
Stop: no new streams, running answers finish within their limit, then the links close.
"""

import asyncio
import contextlib
import os
import ssl
import time
from typing import Final

import msgspec

from byoai_agent.admission import Admission
from byoai_agent.config import AgentConfig, NamedUpstream
from byoai_agent.control import Gateway, GatewayError
from byoai_agent.credentials import Credentials, retry_delay_s
from byoai_agent.edge import Edge
from byoai_agent.exits import expected
from byoai_agent.links import Links, Slot
from byoai_agent.models import Catalogue
from byoai_agent.policy import Policy
from byoai_agent.reporter import Reporter, identity_shared
from byoai_agent.state import StateDirectory, StateError
from byoai_agent.state_keeper import StateKeeper
from byoai_agent.statusfile import AgentReport, LinkReport, UpstreamReport
from byoai_agent.streams import Doors, LinkStreams
from byoai_agent.upstreams import UpstreamPool, UpstreamWatch
from byoai_shared.backoff import Backoff
from byoai_shared.errors import ByoaiError
from byoai_shared.model_skills import capabilities
from byoai_shared.protocol.control import Status
from byoai_shared.tls import Credentials as TlsCredentials
from byoai_shared.tls import server_context

_REPORT_EVERY_S: Final = 5.0
_REPORT_REST_S: Final = 0.1


class Agent:
    """Everything that `byoai-agent run` keeps going."""

    def __init__(self, config: AgentConfig, state: StateDirectory, reporter: Reporter) -> None:
        membership = state.membership()
        limits = config.limits
        self._limits = limits
        self._keeper = StateKeeper(state, reporter)
        self._changed = asyncio.Event()
        self._ended = ""
        self._reporter = reporter
        ca_pem = membership.gateway_ca_pem
        gateway = Gateway(membership.gateway_url, ca_pem=ca_pem.encode() if ca_pem else None)
        self.credentials = Credentials(state, gateway, reporter, keeper=self._keeper)
        self._catalogue = Catalogue(cloud_models=config.allowed.cloud_models)
        self._pool = UpstreamPool(connect_s=limits.connect_s)
        self._watch = UpstreamWatch(
            config,
            self._catalogue,
            self._pool,
            named=named_upstreams(config, membership.upstreams),
            on_change=self._upstreams_changed,
        )
        self._admission = Admission(
            concurrent=limits.concurrent_requests,
            queued=limits.queued_requests,
            wait_s=limits.queue_wait_s,
            on_change=self._load_changed,
        )
        self._edge = Edge(
            policy=Policy(config.allowed.groups),
            catalogue=self._catalogue,
            pool=self._pool,
            admission=self._admission,
            limits=limits,
            look_again=self._watch.fresh,
        )
        self._doors = Doors(self._inner_context(), ())
        self.links = Links(
            self.credentials,
            reporter,
            new_streams=lambda: LinkStreams(self._edge.handle, self._doors, self._edge.http_limits),
            status=self.status,
            max_streams=limits.concurrent_requests + limits.queued_requests,
            on_change=self._changed.set,
        )
        self.credentials.listeners.told = self._told

    async def run(self, stopped: asyncio.Event, insisted: asyncio.Event) -> None:
        """Serve until `stopped` is set; `insisted` cuts the wait for running answers short.

        Raises:
            ExceptionGroup: of errors after which only a person helps.
        """
        membership = self.credentials.membership
        self._reporter.starting(membership.tunnel_id, membership.owner)
        try:
            async with asyncio.TaskGroup() as group:
                work = group.create_task(self._work())
                await _first(stopped, work)
                work.cancel()
            self._reporter.stopping(self._admission.in_flight, self._limits.drain_s)
            async with asyncio.TaskGroup() as group:
                drain = group.create_task(self.links.drain(self._limits.drain_s))
                await _first(insisted, drain)
                drain.cancel()
        except ExceptionGroup as group:
            self._ended = str(expected(group) or "")
            raise
        finally:
            self.links.abort()
            self._pool.close()
            await self._keeper.close(self._encoded_report(is_running=False))

    def status(self) -> Status:
        """What the gateway is told of this agent."""
        models = self._catalogue.announced()
        return Status(
            models=models,
            capabilities=capabilities(models),
            in_flight=self._admission.in_flight,
            queued=self._admission.waiting,
            capacity=self._admission.capacity,
            health=self._catalogue.health(),
        )

    async def _work(self) -> None:
        await self._watch.look()
        if not self._catalogue.upstreams:
            self._upstreams_changed()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch.run())
            group.create_task(self._report())
            await self._first_token()
            group.create_task(self.credentials.run())
            group.create_task(self.links.run())

    async def _first_token(self) -> None:
        """Wait for the gateway as long as it takes, unless it says no for good."""
        backoff = Backoff()
        while True:
            try:
                await self.credentials.start()
            except (GatewayError, StateError) as error:
                if error.is_fatal:
                    raise
                delay_s = retry_delay_s(backoff, error)
                self._reporter.renewal_failed(error, delay_s)
                await asyncio.sleep(delay_s)
            else:
                return

    def _told(self) -> None:
        """The gateway said something new: keys, CA bundle, relays."""
        self._doors.keys = self.credentials.authentication_keys
        try:
            self._doors.context = self._inner_context()
        except ByoaiError as error:  # a full disk, say; the former one serves until the next token
            self._reporter.state_notice(str(error))
        self.links.relays_changed()

    def _inner_context(self) -> ssl.SSLContext:
        pair = self.credentials.end_to_end
        return server_context(
            TlsCredentials(pair.certificate_pem, pair.key_pem),
            client_ca_pem=self.credentials.membership.services_ca_pem.encode(),
            alpn=("http/1.1",),
        )

    def _upstreams_changed(self) -> None:
        self._reporter.upstreams(*describe_upstreams(self._catalogue))
        self.links.status_changed()

    def _load_changed(self) -> None:
        self.links.status_changed()

    # -- the status file

    async def _report(self) -> None:
        while True:
            self._changed.clear()
            await self._keeper.report(self._encoded_report(is_running=True))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REPORT_EVERY_S):
                    await self._changed.wait()
                    await asyncio.sleep(_REPORT_REST_S)

    def _encoded_report(self, *, is_running: bool) -> bytes:
        membership = self.credentials.membership
        report = AgentReport(
            process=os.getpid(),
            is_running=is_running,
            written_at=time.time(),
            tunnel_id=membership.tunnel_id,
            links=tuple(_link_report(slot) for slot in self.links.slots if slot.relay),
            upstreams=tuple(
                UpstreamReport(
                    url=one.target.url,
                    is_up=bool(one.is_up),
                    fault=one.fault,
                    models=tuple(str(entry["id"]) for entry in one.models),
                )
                for one in self._catalogue.upstreams
            ),
            in_flight=self._admission.in_flight,
            waiting=self._admission.waiting,
            capacity=self._admission.capacity,
            token_expires_at=self.credentials.token_expires_at,
            certificate_expires_at=int(self.credentials.certificate_expires_at().timestamp()),
            ended=self._ended,
            problems=self._problems(),
        )
        return msgspec.json.encode(report)

    def _problems(self) -> tuple[str, ...]:
        other = self.credentials.other_host
        shared = "" if other is None else identity_shared(other.hostname, other.since)
        return tuple(filter(None, (self._keeper.problem, shared, self.credentials.refusal)))


def named_upstreams(config: AgentConfig, remembered: tuple[str, ...]) -> tuple[NamedUpstream, ...]:
    """The servers that the owner named: now, in the configuration, or when joining."""
    named = config.upstreams or tuple(NamedUpstream(url=url) for url in remembered)
    return tuple(
        NamedUpstream(
            url=one.url,
            key=one.key or config.upstream_key,
            ca_file=one.ca_file or config.upstream_ca_file,
        )
        for one in named
    )


def describe_upstreams(catalogue: Catalogue) -> tuple[list[str], list[str], list[str]]:
    """One sentence for each model server: those that answer, do not, or will by themselves."""
    found: list[str] = []
    faults: list[str] = []
    waiting: list[str] = []
    for one in catalogue.upstreams:
        count = len(one.models)
        if one.fault:
            (waiting if one.is_waiting else faults).append(f"{one.target.url}: {one.fault}")
        else:
            found.append(f"{one.target.url}: {count} model{'' if count == 1 else 's'}")
    return found, faults, waiting


def _link_report(slot: Slot) -> LinkReport:
    trip_s = slot.link.session.round_trip_s if slot.link is not None else None
    return LinkReport(
        relay=slot.relay,
        is_up=slot.is_up,
        fault=slot.fault,
        retry_at=slot.retry_at,
        round_trip_ms=None if trip_s is None else round(trip_s * 1000, 1),
    )


async def _first(stopped: asyncio.Event, work: asyncio.Task[None]) -> None:
    waiting = asyncio.ensure_future(stopped.wait())
    try:
        await asyncio.wait((waiting, work), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
