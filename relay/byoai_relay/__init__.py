"""BYOAI relay: a blind switch between agents' and gateways' links.

It only listens, keeps no database, holds no signing key, and sees ciphertext only.
"""

from importlib.metadata import version
from typing import Final

__version__: Final = version("byoai-relay")
