"""Ties a child process to its parent: however the parent ends, the child ends too.

A parent that is killed runs no code, and each system has its own way for a child to notice (or
none, and Linux's is lost when the child changes its user). So a small shell script takes the
child's place for a moment: it leaves a watchdog in the child's process group and then becomes the
child, with the same process ID. The watchdog reads from a pipe whose other end only the parent
holds. The kernel closes that end with the parent, and the watchdog then signals the whole group,
itself included.

It reaches what stays in the child's process group. A grandchild that leaves the group has to end
with the child.
"""

import os
import signal
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

SCRIPT = """
last_signal=$1
shift
exec 3<&0 </dev/null
( (
    trap '' HUP INT QUIT TERM
    exec >/dev/null 2>&1
    read -r _ <&3
    kill -s "$last_signal" 0
) & )
exec 3<&-
exec "$@"
"""


class Lifeline:
    """Holds one child to this process; `cut` ends what is left of the child's process group.

    It can tie another child after `cut`. `last_signal` is what ends the group; a child with its own
    children outside the group needs one that it can act on.
    """

    def __init__(self, last_signal: signal.Signals = signal.SIGKILL) -> None:
        self._last_signal = last_signal.name.removeprefix("SIG")
        self._held: int | None = None

    @contextmanager
    def tied(self, command: Sequence[str]) -> Generator[tuple[list[str], int]]:
        """The command to start instead of this one, and the file descriptor for its standard input.

        The caller starts it inside the context, and in a new session. The command itself reads an
        empty standard input.
        """
        self.cut()
        watched, self._held = os.pipe()
        try:
            yield ["/bin/sh", "-c", SCRIPT, "lifeline", self._last_signal, *command], watched
        except BaseException:
            self.cut()
            raise
        finally:
            os.close(watched)

    def cut(self) -> None:
        """Let the watchdog end the group, after the child has ended. Idempotent."""
        if self._held is not None:
            os.close(self._held)
            self._held = None


def run(
    command: Sequence[str],
    *,
    timeout_s: float | None = None,
    user: int | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a tied command to its end and return its standard output; standard error is inherited.

    `user` runs it as that user, without any supplementary group.

    Raises:
        subprocess.CalledProcessError: it failed.
        subprocess.TimeoutExpired: it took too long and was killed.
    """
    lifeline = Lifeline()
    try:
        with lifeline.tied(command) as (tied, stdin):
            return subprocess.run(
                tied,
                check=True,
                stdin=stdin,
                stdout=subprocess.PIPE,
                text=True,
                timeout=timeout_s,
                start_new_session=True,
                user=user,
                extra_groups=None if user is None else [],
                cwd=cwd,
            ).stdout
    finally:
        lifeline.cut()
