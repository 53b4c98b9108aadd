"""Where the control plane takes the time from: one callable, so that tests bring their own."""

from collections.abc import Callable

Clock = Callable[[], float]
"""Unix time in seconds, as `time.time` gives it."""
