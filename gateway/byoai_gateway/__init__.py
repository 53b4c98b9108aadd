"""BYOAI gateway: routes users' AI calls, and runs the tunnels' control plane.

Control plane: `registry`, `enrolment`, `authorities`, `signing`, `trust`, `api`. Data path:
`front` (the public door), `self_hosted`, `tunnel_client`, `relay_links`, `presence`.
"""

from importlib.metadata import version
from typing import Final

__version__: Final = version("byoai-gateway")
