"""`byoai-agent`: join a tunnel once, then run; see how it is; find out what is wrong.

Exit codes, for whatever supervises the program:

    0    stopped as asked, or all is well
    1    failed in a way that another start may mend
    2    called wrongly (an option, a setting, a mistyped join code)
    3    cannot go on without a person: do not start it again
         (systemd: RestartPreventExitStatus=2 3)
    130  interrupted before it was done
"""

import os
import sys
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from byoai_agent import __version__, check, join, running, statusview
from byoai_agent.config import PREFIX, AgentConfig
from byoai_agent.exits import OK, exit_code, expected
from byoai_agent.state import CONFIG_NAME, StateDirectory, default_directory
from byoai_shared import config as configuration
from byoai_shared import joincode, logs, runtime, standard_streams
from byoai_shared.errors import ByoaiError, ConfigError

_OPTIONS: Final = {"BYOAI_AGENT_STATE_DIR", "BYOAI_AGENT_CONFIG", "BYOAI_AGENT_UPSTREAM"}
"""Variables that stand for options; all others with our prefix are settings."""

_state_dir = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="BYOAI_AGENT_STATE_DIR",
    help=f"Where this agent keeps its keys.  [default: {default_directory()}]",
)
_config_file = click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="BYOAI_AGENT_CONFIG",
    help=f"Settings (TOML).  [default: {CONFIG_NAME} in the state directory, if it is there]",
)
_upstream = click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="URL",
    envvar="BYOAI_AGENT_UPSTREAM",
    help="A model server, like http://127.0.0.1:8000. Repeat it for several. "
    "Without it, the usual ports are tried.",
)


@click.group(epilog="Exit codes: 0 fine, 1 try again, 2 wrong usage, 3 a person is needed.")
@click.version_option(__version__, package_name="byoai-agent")
def cli() -> None:
    """Serve the model server of this host through a BYOAI tunnel.

    Join once with the code from the settings page, then run:

        byoai-agent join CODE

        byoai-agent run
    """


# Words that look like options may be parts of a code that was wrapped: it has hyphens in it.
@cli.command("join", context_settings={"ignore_unknown_options": True})
@click.argument("code", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--replace", is_flag=True, help="Give up the agent that lives here.")
@_state_dir
@_config_file
@_upstream
def join_command(
    *,
    code: tuple[str, ...],
    replace: bool,
    state_dir: Path | None,
    config_file: Path | None,
    upstreams: tuple[str, ...],
) -> int:
    """Join this host to a tunnel with the CODE from the settings page.

    A code that was wrapped into several words is put together again.
    """
    state = _state(state_dir)
    settings = _settings(state, config_file, upstreams)
    logs.configure(form="console", level="warning")
    work = join.Joining(Console(), state, settings, upstreams, replace=replace)
    return runtime.run(lambda: work.run(code))


@cli.command("run")
@_state_dir
@_config_file
@_upstream
@click.option("--log-format", type=click.Choice(["console", "json"]))
def run_command(
    state_dir: Path | None,
    config_file: Path | None,
    upstreams: tuple[str, ...],
    log_format: str | None,
) -> int:
    """Answer the tunnel's requests until stopped."""
    standard_streams.write_in_background()
    state = _state(state_dir)
    settings = _settings(state, config_file, upstreams, log_format)
    return runtime.run(lambda: running.run(settings, state))


@cli.command("status")
@_state_dir
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status_command(*, state_dir: Path | None, as_json: bool) -> int:
    """Show how the agent on this host is."""
    return statusview.show(Console(), _state(state_dir), as_json=as_json)


@cli.command("check")
@_state_dir
@_config_file
@_upstream
def check_command(
    state_dir: Path | None, config_file: Path | None, upstreams: tuple[str, ...]
) -> int:
    """Try every step from this host to the tunnel, and say what to do where one fails."""
    state = _state(state_dir)
    settings = _settings(state, config_file, upstreams)
    logs.configure(form="console", level="error")
    return runtime.run(lambda: check.run(Console(), settings, state))


@cli.command("settings")
def settings_command() -> int:
    """Print every setting with its default, as a file to start from."""
    print(configuration.describe(AgentConfig))
    return OK


def main() -> None:
    """Run the command line; every expected failure is one sentence and an exit code."""
    standard_streams.protect()
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        code = exit_.exit_code
    except click.ClickException as error:
        code = _explain_usage(error)
    except (click.Abort, KeyboardInterrupt):
        code = runtime.INTERRUPTED
    except BaseExceptionGroup as group:
        code = _explain(group)
    except ByoaiError as error:
        code = _explain(error)
    sys.exit(standard_streams.finish(code if isinstance(code, int) else OK))


def _explain_usage(error: click.ClickException) -> int:
    """Print what was wrong with the command line, but never a part of a join code."""
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    has_code = any(joincode.PREFIX in word for word in words)
    if not (has_code and any(word in error.format_message() for word in words)):
        error.show()
        return error.exit_code
    sentence = "a join code belongs behind `join`, on the same line: byoai-agent join CODE"
    return _explain(ConfigError(sentence))


def _explain(error: BaseException) -> int:
    """Print the sentence of an expected failure; let anything else pass."""
    found = expected(error)
    if found is None:
        raise error
    # In one line, so that a command in it can be copied whole.
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print("[red]✗[/] ", end="")
    console.print(str(found), markup=False)
    return exit_code(found)


def _state(directory: Path | None) -> StateDirectory:
    return StateDirectory(directory or default_directory())


def _settings(
    state: StateDirectory,
    file: Path | None,
    upstreams: tuple[str, ...],
    log_format: str | None = None,
) -> AgentConfig:
    flags: dict[str, Any] = {}
    if upstreams:
        flags["upstreams"] = [{"url": url} for url in upstreams]
    if log_format is not None:
        flags["log.form"] = log_format
    default = state.path / CONFIG_NAME
    return configuration.load(
        AgentConfig,
        file=file or (default if state.has(CONFIG_NAME) else None),
        environ={k: v for k, v in os.environ.items() if k not in _OPTIONS},
        prefix=PREFIX,
        flags=flags,
    )
