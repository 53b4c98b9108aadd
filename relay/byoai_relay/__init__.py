"""BYOAI relay: a blind switch between agents' and gateways' links.

It only listens, keeps no database, holds no signing key, and sees ciphertext only.
"""

__version__: str


def __getattr__(name: str) -> str:
    """Look up the version when it is first needed: importing this package must take no time."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib.metadata import version  # noqa: PLC0415 -- `__main__` has signals to deal with

    globals()[name] = version("byoai-relay")
    return str(globals()[name])
