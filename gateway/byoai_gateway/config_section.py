"""What every table of the gateway's settings has in common."""

import msgspec


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the settings: immutable, by name, unknown keys refused."""
