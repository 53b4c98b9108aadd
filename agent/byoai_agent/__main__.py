"""The `byoai-agent` command; `python -m byoai_agent` is the same.

It imports the program itself only after signals have been dealt with: see `entry_point`.
"""

from collections.abc import Callable

from byoai_shared import entry_point


def _program() -> Callable[[], None]:
    from byoai_agent.cli import main  # noqa: PLC0415 -- after signals have been dealt with

    return main


def main() -> None:
    """Run the command line."""
    entry_point.run(_program)


if __name__ == "__main__":
    main()
