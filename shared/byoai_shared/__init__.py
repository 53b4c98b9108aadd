"""BYOAI shared."""
