"""Whose secrets there are: how the owners of sealed records are named.

Names are part of what a seal protects: to change one makes its records unreadable.
"""

from typing import Final

USER: Final = "user/"
LONG_USER: Final = "user-sha256/"
"""Of users whose id is too long for the column."""
TUNNEL: Final = "tunnel/"
AUTHENTICATION_KEY: Final = "authentication-key/"
"""What a tunnel's fields begin with; the version follows."""
AUTHORITY: Final = "authority/"
SIGNING: Final = "token-signing"
