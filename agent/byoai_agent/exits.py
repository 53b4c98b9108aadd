"""Exit codes: what a supervisor may do after the program has ended."""

from typing import Final, cast

from byoai_shared.errors import ByoaiError, ConfigError
from byoai_shared.joincode import JoinCodeError

OK: Final = 0
FAILED: Final = 1
"""Another start may mend it."""
MISUSED: Final = 2
"""An option, a setting or a join code is wrong."""
FATAL: Final = 3
"""A person is needed; starting again changes nothing (RestartPreventExitStatus=2 3)."""


def expected(error: BaseException) -> ByoaiError | None:
    """The error of ours inside, if there is one: its sentence is fit for a person."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        found = [expected(inner) for inner in group.exceptions]
        return found[0] if all(found) else None
    return error if isinstance(error, ByoaiError) else None


def exit_code(error: ByoaiError) -> int:
    """How the program ends because of an error."""
    if isinstance(error, JoinCodeError | ConfigError):
        return MISUSED
    return FATAL if getattr(error, "is_fatal", False) else FAILED
