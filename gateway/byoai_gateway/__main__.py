"""The `byoai-gateway` command; `python -m byoai_gateway` is the same.

It imports the program itself only after signals have been dealt with: see `entry_point`.
"""

from collections.abc import Callable

from byoai_shared import entry_point


def _program() -> Callable[[], None]:
    from byoai_gateway.cli import run  # noqa: PLC0415 -- after signals have been dealt with

    return run


def main() -> None:
    """Run the command line."""
    entry_point.run(_program)


if __name__ == "__main__":
    main()
