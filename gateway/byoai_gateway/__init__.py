"""BYOAI gateway: routes users' AI calls, and runs the tunnels' control plane.

Control plane: `registry`, `enrolment`, `authorities`, `signing`, `trust`, `api`. Data path:
`front` (the public door), `self_hosted`, `tunnel_client`, `relay_links`, `presence`.
"""

import os

# Libraries make TLS contexts of their own, aiohttp as soon as it is imported. Each would write its
# sessions' keys to this file, and fail where it cannot be written.
os.environ.pop("SSLKEYLOGFILE", None)

__version__: str


def __getattr__(name: str) -> str:
    """Look up the version when it is first needed: importing this package must take no time."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib.metadata import version  # noqa: PLC0415 -- `__main__` has signals to deal with

    globals()[name] = version("byoai-gateway")
    return str(globals()[name])
