"""BYOAI agent."""
