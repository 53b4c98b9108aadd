"""The `byoai-relay` command."""

import os
import sys
from pathlib import Path

import click

from byoai_relay import __version__
from byoai_relay.config import RelayConfig
from byoai_relay.service import RelayService
from byoai_shared import logs, runtime, standard_streams
from byoai_shared.config import describe, load
from byoai_shared.errors import ByoaiError

_ENVIRONMENT_PREFIX = "BYOAI_RELAY_"


def run() -> None:
    """Run the command line; printing ends no command (see `standard_streams`)."""
    standard_streams.run(main)


@click.group()
@click.version_option(__version__, prog_name="byoai-relay")
def main() -> None:
    """Run a blind relay between agents and gateways."""


@main.command()
@click.option("--config", "file", type=click.Path(path_type=Path), help="Settings, TOML.")
@click.option(
    "--log-format", type=click.Choice(["json", "console"]), help="For machines or people."
)
def serve(file: Path | None, log_format: str | None) -> None:
    """Serve until SIGTERM or Ctrl-C, then drain; a second signal ends it at once."""
    flags: dict[str, object] = {"log.form": log_format} if log_format else {}
    try:
        config = load(
            RelayConfig, file=file, environ=os.environ, prefix=_ENVIRONMENT_PREFIX, flags=flags
        )
    except ByoaiError as error:
        raise click.ClickException(str(error)) from error
    standard_streams.write_in_background()
    logs.configure(form=config.log.form, level=config.log.level)
    sys.exit(runtime.run(lambda: _serve(config)))


async def _serve(config: RelayConfig) -> int:
    try:
        async with runtime.StopSignal() as stop:
            service = RelayService(config)
            await service.run(stop.requested, stop.insisted)
    except (ByoaiError, OSError) as error:
        click.echo(f"byoai-relay: {error}", err=True)
        return 1
    return 0


@main.command()
def settings() -> None:
    """Print every setting with its default and unit, as a TOML file to start from."""
    click.echo(describe(RelayConfig))
