"""BYOAI gateway: routes users' AI calls, and runs the tunnels' control plane.

Control plane: `registry`, `enrolment`, `authorities`, `signing`, `trust`, `api`. Data path:
`front` (the public door), `self_hosted`, `tunnel_client`, `relay_links`, `presence`.
"""

import os
from importlib.metadata import version
from typing import Final

# Libraries make TLS contexts of their own, aiohttp as soon as it is imported. Each would write its
# sessions' keys to this file, and fail where it cannot be written.
os.environ.pop("SSLKEYLOGFILE", None)

__version__: Final = version("byoai-gateway")
