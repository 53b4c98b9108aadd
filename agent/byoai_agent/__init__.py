"""BYOAI agent."""

from importlib.metadata import version

__version__ = version("byoai-agent")
