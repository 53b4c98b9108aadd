"""BYOAI gateway."""
