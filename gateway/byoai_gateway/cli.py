"""`byoai-gateway`: serve, and the few things an operator does by hand.

All commands read the same settings and work on the same database; a running gateway notices a
dropped key within a second or two.
"""

import os
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, cast

import click

from byoai_gateway import __version__
from byoai_gateway.audit import Action
from byoai_gateway.config import PREFIX, GatewayConfig
from byoai_gateway.config_check import check
from byoai_gateway.config_warnings import config_warnings
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_gateway.database import Database
from byoai_gateway.key_file import add_first_key, add_last_key, make_first
from byoai_gateway.lost_keys import LostKeys
from byoai_gateway.operator_revocation import OperatorRevocation
from byoai_gateway.preflight.findings import as_json, as_text, failed, is_sound
from byoai_gateway.preflight.run import run_checks
from byoai_gateway.relay_certificates import relay_subject, write_relay_certificate
from byoai_gateway.server import serve as serve_until
from byoai_gateway.service_certificates import current_revocations, revoke_service
from byoai_gateway.users import User, mint
from byoai_shared import logs, runtime, standard_streams
from byoai_shared.certificate_life import MAX_SERVICE_LIFETIME_S
from byoai_shared.config import describe, load
from byoai_shared.errors import ByoaiError
from byoai_shared.identity import GatewayIdentity, RelayIdentity
from byoai_shared.settings import settings_of

_DAY_S: Final = 86_400

log = logs.get_logger("gateway")

_config_file = click.option(
    "--config",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Settings (TOML); BYOAI_GATEWAY_… in the environment wins over them.",
)


def run() -> None:
    """Run the command line; printing ends no command (see `standard_streams`)."""
    standard_streams.run(main)


@click.group()
@click.version_option(__version__, package_name="byoai-gateway")
def main() -> None:
    """Route users' AI calls, and run their tunnels' control plane."""


@main.command()
@_config_file
@click.option("--log-format", type=click.Choice(["json", "console"]))
def serve(file: Path | None, log_format: str | None) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    config = _settings(file, {"log.form": log_format} if log_format else {})
    standard_streams.write_in_background()
    logs.configure(form=config.log.form, level=config.log.level)
    _warn_of_gaps(config)
    sys.exit(runtime.run(lambda: _serve(config)))


@main.command("check")
@_config_file
@click.option("--json", "is_json", is_flag=True, help="Write the findings as one JSON object.")
def check_settings(file: Path | None, *, is_json: bool) -> None:
    """Check the settings, and try once everything that they name.

    Providers, database, counters, the users' keys, relays and certificates are tried at the same
    time, within 15 s. Nothing is changed. The exit code is 1 if something failed.
    """
    try:
        config = _settings(file)
    except click.ClickException as error:
        if not is_json:
            raise
        fix = "correct the setting; byoai-gateway settings prints all of them"
        click.echo(as_json((failed(_setting_in(error.message), error.message, fix),)))
        sys.exit(1)

    async def run() -> int:
        findings = await run_checks(config)
        click.echo(as_json(findings) if is_json else as_text(findings))
        return 0 if is_sound(findings) else 1

    logs.configure(form="console", level="warning")
    sys.exit(runtime.run(run))


@main.command("dev-token")
@click.option("--user", required=True, help="The user's id.")
@click.option("--plan", default="pro", show_default=True)
@click.option("--hours", type=click.IntRange(1, 24 * 31), default=12, show_default=True)
@_config_file
def dev_token(user: str, plan: str, hours: int, file: Path | None) -> None:
    """Print a user's token, as the main application would sign it. For development.

    It needs `users.secret`; with a JWKS only the main application can sign.
    """
    settings = _settings(file).users
    try:
        click.echo(mint(User(user, plan), settings, time.time(), hours * 3600))
    except ByoaiError as error:
        raise click.ClickException(str(error)) from error


@main.command("issue-relay-certificate")
@click.argument("name")
@click.option("--host", "hosts", multiple=True, required=True, help="Name or address; repeatable.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--days",
    type=click.IntRange(1, MAX_SERVICE_LIFETIME_S // _DAY_S),
    help="Life of the certificate; services.certificate_lifetime_s if it is left out.",
)
@click.option(
    "--create",
    is_flag=True,
    help="Make the gateway's database and key file, for a relay that is there before the gateway.",
)
@_config_file
def issue_relay_certificate(
    name: str,
    hosts: tuple[str, ...],
    out: Path,
    days: int | None,
    file: Path | None,
    *,
    create: bool,
) -> None:
    """Make the key and certificate of the relay NAME, and the CAs it trusts, in a folder.

    Gateways renew the certificate while the relay runs. A relay that was down for longer than its
    certificate lives, or whose certificate was revoked, needs new files from this command.
    """

    async def issue(control: ControlPlane) -> None:
        configured_s = control.config.services.certificate_lifetime_s
        lifetime_s = configured_s if days is None else days * _DAY_S
        subject, key_pem = relay_subject(name, hosts, lifetime_s)
        now = control.clock()
        expires_at = write_relay_certificate(control.authorities, subject, key_pem, out, now)
        click.echo(f"wrote {out}; the certificate is good until {_date(expires_at)}")

    _with_control_plane(file, issue, may_create=create)


@main.group()
def certificates() -> None:
    """Revoke certificates of relays and gateways, and list what is revoked."""


@certificates.command("revoke")
@click.argument("service", type=click.Choice(["gateway", "relay"]))
@click.argument("name")
@_config_file
def revoke_certificates(service: str, name: str, file: Path | None) -> None:
    """Revoke every certificate that the gateway or relay NAME has had until now.

    Relays end the links of a gateway within seconds; a gateway of this name that still runs goes on
    with a new certificate. Gateways end their links to a relay; it needs new files
    (issue-relay-certificate).
    """

    async def revoke(control: ControlPlane) -> None:
        identity = GatewayIdentity(name) if service == "gateway" else RelayIdentity(name)
        row = await revoke_service(control.database, control.audit, identity, control.clock())
        click.echo(f"revoked {row.service}; kept until {_date(row.expires_at)}")

    _with_control_plane(file, revoke)


@certificates.command("list")
@_config_file
def list_revoked(file: Path | None) -> None:
    """List the relays and gateways whose certificates were revoked."""

    async def show(control: ControlPlane) -> None:
        async with control.database.reading() as connection:
            rows = await current_revocations(connection, control.clock())
        for row in rows:
            issued = _date(row.issued_until_ms // 1000)
            click.echo(f"{row.service}  issued until {issued}, kept until {_date(row.expires_at)}")

    _with_control_plane(file, show)


@main.group()
def keys() -> None:
    """See the keys that sign tunnel tokens, drop one that leaked; change or forget the vault's."""


@keys.command("list")
@_config_file
def list_keys(file: Path | None) -> None:
    """List the signing keys that relays trust."""

    async def show(control: ControlPlane) -> None:
        for key in control.signing_keys.known:
            click.echo(f"{key.kid}  signs from {_date(key.active_from)}")

    _with_control_plane(file, show)


@keys.command("drop")
@click.argument("kid")
@_config_file
def drop_key(kid: str, file: Path | None) -> None:
    """Stop trusting the signing key KID at once; another one takes over.

    Tokens that it signed are refused as soon as the relays hear of it. Agents fetch new ones.
    """

    async def drop(control: ControlPlane) -> None:
        await control.signing_keys.drop(kid)
        click.echo(f"dropped {kid}; now trusted:")
        for key in control.signing_keys.known:
            click.echo(f"{key.kid}  signs from {_date(key.active_from)}")

    _with_control_plane(file, drop)


@keys.command("rotate")
@click.option("--prepare", is_flag=True, help="Only add a new key; it does not seal yet.")
@click.option("--to", "key_id", help="Seal with this key, which is in the file, not a new one.")
@_config_file
def rotate_key(key_id: str | None, file: Path | None, *, prepare: bool) -> None:
    """Seal every secret in the database with a new key-encryption key, while gateways serve.

    The new key is put first into vault.key_file; gateways that read this file notice by
    themselves. With gateways on several hosts: --prepare on one, copy the file to the others,
    then --to the new key on each.
    """
    vault = _settings(file).vault
    if vault.keys is not None:
        raise click.ClickException(
            "the keys come from vault.keys: add a new line at its end and start every gateway "
            "again, so that each can open what any of them seals; then put that line first and "
            "start them once more: they seal every secret anew by themselves"
        )
    if prepare and key_id is not None:
        raise click.UsageError("--prepare makes a new key; --to takes one that is there")

    async def rotate(control: ControlPlane) -> None:
        if prepare:
            added = add_last_key(vault.key_file)
            await _note(control, Action.VAULT_KEY_ADDED, added)
            click.echo(f"added {added}; once every gateway has the file: keys rotate --to {added}")
            return
        if key_id is not None:
            make_first(vault.key_file, key_id)
        first = key_id or add_first_key(vault.key_file)
        await _note(control, Action.VAULT_KEY_CHANGED, first)
        await _rewrap(control, first)

    _with_control_plane(file, rotate)


async def _rewrap(control: ControlPlane, key_id: str) -> None:
    rewrapped = await control.secrets.rewrap(control.database)
    click.echo(f"{key_id} seals from now on; secrets sealed anew: {rewrapped.done}")
    if rewrapped.failed:
        raise ByoaiError(
            f"{rewrapped.failed} secrets do not open with any known key and stay as they are; "
            "users are asked to enter theirs again. If the gateway does not start without an "
            "older key: byoai-gateway keys forget"
        )
    path = control.config.vault.key_file
    click.echo(f"the older keys in {path} are needed for older backups only")


async def _note(control: ControlPlane, action: Action, key_id: str) -> None:
    async with control.database.writing() as connection:
        await control.audit.note(connection, None, action, subject=key_id)


@keys.command("forget")
@click.argument("key_id")
@click.option("--yes", is_flag=True, help="Do it; without this it only says what would be lost.")
@_config_file
def forget_key(key_id: str, file: Path | None, *, yes: bool) -> None:
    """Go on without the key-encryption key KEY_ID, which is lost for good.

    Nothing that it sealed opens again. Users are asked to enter their keys again; tunnels get new
    authentication keys, which agents learn with their next token; CAs and signing keys are made
    anew by the next start.
    """
    config = _settings(file)

    async def forget() -> None:
        database = await Database.open(config.database, may_create=False)
        try:
            lost = LostKeys(database, config.vault, time.time)
            use = await lost.lost_with(key_id)
            click.echo(f"key {key_id} sealed {use}")
            if not yes:
                raise ByoaiError(
                    f"nothing was changed; if {key_id} cannot be put back into "
                    f"{config.vault.key_file.absolute()}, run this again with --yes"
                )
            await lost.forget(key_id)
        finally:
            await database.close()
        click.echo(f"forgot {key_id}")
        if use.gateway:
            click.echo(
                "start every gateway again; if a CA was among it, make new certificates for all "
                "relays (issue-relay-certificate), and let agents join again"
            )

    _run(forget)


@main.command("revoke")
@click.argument("names", nargs=-1, metavar="[TUNNEL | TUNNEL/AGENT]...")
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]),
    help="Also every tunnel registered and every agent joined since then (UTC).",
)
@click.option("--yes", is_flag=True, help="Do it; without this it only lists what it would revoke.")
@_config_file
def revoke(names: tuple[str, ...], since: datetime | None, file: Path | None, *, yes: bool) -> None:
    """Revoke tunnels and remove agents of any user; a running gateway tells the relays.

    After a restore, what was revoked since the backup is active again: the gateways' logs name it
    (tunnel.revoked, agent.removed). See docs/operations.md.
    """
    if not names and since is None:
        raise click.UsageError("name tunnels or agents, or give --since")

    async def work(control: ControlPlane) -> None:
        revocation = OperatorRevocation(control.database, control.registry)
        chosen = list(names)
        if since is not None:
            chosen += await revocation.since(since.replace(tzinfo=UTC).timestamp())
        if not yes:
            click.echo("".join(f"would revoke {name}\n" for name in chosen), nl=False)
            raise ByoaiError("nothing was changed; run this again with --yes")
        async for name, was_active in revocation.revoke(chosen):
            click.echo(f"revoked {name}" if was_active else f"not active: {name}")

    _with_control_plane(file, work)


@main.command()
def settings() -> None:
    """Print every setting with its meaning, default and unit, as a TOML file to start from."""
    click.echo(describe(GatewayConfig))


def _settings(file: Path | None, flags: dict[str, object] | None = None) -> GatewayConfig:
    try:
        config = load(
            GatewayConfig, file=file, environ=os.environ, prefix=PREFIX, flags=flags or {}
        )
        check(config)
    except ByoaiError as error:
        raise click.ClickException(str(error)) from error
    return config


def _setting_in(message: str) -> str:
    """Find which setting a sentence names; the longest, as some begin like others."""
    names = (it.name for it in settings_of(GatewayConfig) if it.name in message)
    return max(names, key=len, default="settings")


def _warn_of_gaps(config: GatewayConfig) -> None:
    """Say what a gateway cannot do as it is set, since it starts all the same."""
    for it in config_warnings(config):
        log.warning(it.event, setting=it.setting, reason=it.reason, next=it.next)


async def _serve(config: GatewayConfig) -> int:
    failures: list[BaseException] = []
    try:
        async with runtime.StopSignal() as stop:
            await serve_until(config, stop.requested, stop.insisted)
    # What fails beside the gateway's own tasks comes out of their groups.
    except* (ByoaiError, OSError) as group:
        failures = _all_in(group)
    for failure in failures:
        click.echo(f"byoai-gateway: {failure}", err=True)
    return 1 if failures else 0


def _all_in(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The failures in a group, and in the groups in it."""
    found: list[BaseException] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            found += _all_in(cast("BaseExceptionGroup[BaseException]", error))
        else:
            found.append(error)
    return found


def _with_control_plane(
    file: Path | None,
    work: Callable[[ControlPlane], Awaitable[None]],
    *,
    may_create: bool = False,
) -> None:
    """Do something with the control plane of the settings, beside a running gateway or not.

    In the wrong folder a relative path leads to nothing: to make a database there would let the
    command succeed on an empty one.
    """
    config = _settings(file)

    async def run() -> None:
        async with open_control_plane(config, may_create=may_create) as control:
            await work(control)

    _run(run)


def _run(work: Callable[[], Awaitable[None]]) -> None:
    """Do the work of a command and end with its exit code."""
    logs.configure(form="console", level="warning")

    async def run() -> int:
        try:
            await work()
        except ByoaiError as error:
            click.echo(f"byoai-gateway: {error}", err=True)
            return 1
        return 0

    sys.exit(runtime.run(run))


def _date(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
