"""BYOAI relay."""
