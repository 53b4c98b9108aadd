"""`byoai-agent run`: the agent with its lock, its signals and its words."""

from rich.console import Console

from byoai_agent.agent import Agent
from byoai_agent.config import AgentConfig
from byoai_agent.exits import OK, exit_code, expected
from byoai_agent.reporter import Reporter
from byoai_agent.state import StateDirectory
from byoai_shared import logs
from byoai_shared.errors import ByoaiError
from byoai_shared.runtime import StopSignal


async def run(config: AgentConfig, state: StateDirectory) -> int:
    """Run until SIGINT or SIGTERM, or until it cannot go on; answers the exit code.

    Raises:
        ByoaiError: it could not even start.
    """
    is_json = config.log.form == "json"
    # A person reads the reporter's sentences; the log's own lines would say them twice.
    quiet = not is_json and config.log.level == "info"
    logs.configure(form=config.log.form, level="warning" if quiet else config.log.level)
    async with StopSignal() as stop:  # first of all: a signal may come at any moment
        return await _run(config, state, stop, is_json=is_json)


async def _run(
    config: AgentConfig, state: StateDirectory, stop: StopSignal, *, is_json: bool
) -> int:
    state.membership()
    lock = state.lock()
    reporter = Reporter(None if is_json else Console(stderr=True))
    for notice in filter(None, (lock.weakness, state.close_to_others())):
        reporter.state_notice(notice)
    try:
        agent = Agent(config, state, reporter)
        await agent.run(stop.requested, stop.insisted)
    except (ByoaiError, ExceptionGroup) as error:
        found = expected(error)
        if found is None:
            raise
        reporter.ended(str(found))
        return exit_code(found)
    finally:
        lock.release()
    return OK
