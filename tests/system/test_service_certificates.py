"""Certificates of relays and gateways in real processes: renewed under a stream, and revoked."""

import pytest

from demo.processes import Event, Process, is_named, output_of
from demo.settings import Settings
from demo.stack import Stack, command_path
from support.canaries import Canaries
from support.house import StackMaker, answered_again, client_of, endless_stream
from support.model_server import FakeModelServer, text

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Half of it until the renewal; at two thirds the link is replaced, and the rest is for a slow
# machine to end the stream in.
SHORT_LIVES: Settings = {"services.certificate_lifetime_s": 40}
HAPPENS_S = 120.0


async def happens(part: Process, name: str, since: int = 0, **fields: object) -> Event:
    """Wait for an event of this name and these fields."""

    def fits(event: Event) -> bool:
        return is_named(event, name) and all(event.get(it) == fields[it] for it in fields)

    return await part.event(fits, HAPPENS_S, since)


async def revoke(stack: Stack, service: str, name: str) -> None:
    await output_of(
        [
            command_path("byoai-gateway"),
            *("certificates", "revoke", service, name),
            *("--config", str(stack.directory / "gateway.toml")),
        ]
    )


async def test_a_stream_runs_while_relay_and_gateway_get_new_certificates(
    make_stack: StackMaker, model_server: FakeModelServer, canaries: Canaries
) -> None:
    async with make_stack(gateway=SHORT_LIVES) as stack:
        tunnel = await stack.open_tunnel("alice", [model_server.url])
        canaries.add(tunnel.token, tunnel.join_code)
        relay, gateway = stack.relays[0], stack.gateway
        async with (
            client_of(stack, tunnel) as client,
            endless_stream(client, model_server, "services") as pieces,
        ):
            since = len(gateway.events)
            await happens(relay, "certificate.renewed")
            await happens(gateway, "relay.connected", since)
    assert "".join(pieces) == text(len(pieces))
    assert not [event for event in gateway.events if is_named(event, "relay.lost")]


async def test_a_revoked_gateway_goes_on_with_a_new_certificate_and_a_revoked_relay_does_not(
    make_stack: StackMaker, model_server: FakeModelServer, canaries: Canaries
) -> None:
    async with make_stack() as stack:
        tunnel = await stack.open_tunnel("alice", [model_server.url])
        canaries.add(tunnel.token, tunnel.join_code)
        relay, gateway = stack.relays[0], stack.gateway
        since = len(relay.events)
        await revoke(stack, "gateway", "gateway")
        await happens(relay, "link.closed", since, role="gateway")
        # To the gateway a link is made until the relay refuses it; one that is used is accepted.
        await answered_again(stack, tunnel)
        since = len(gateway.events)
        await revoke(stack, "relay", relay.name)
        await happens(gateway, "relay.revoked", since)
        refused = await happens(gateway, "relay.unreachable", since)
        assert "revoked" in str(refused["reason"])
