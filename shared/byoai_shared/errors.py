"""The root of every error that BYOAI raises on purpose.

ByoaiError
├── ConfigError            config.py: a setting is missing, unknown or wrong
│   └── NotPrivate         private_files.py: other accounts own or read a key or directory
├── KeyFormatError         keys.py: a private key is not one that we use
├── IdentityError          identity.py: a name or certificate is not what it claims
├── JoinCodeError          joincode.py: a join code is mistyped or damaged
├── TokenRefused           tokens.py: a tunnel token or assertion does not hold
├── ProtocolError          protocol/errors.py: the peer broke the link protocol
├── LinkError              link/errors.py: a link could not be made or was lost
├── UnreadableBody         request_body/errors.py: a body that cannot be read in exactly one way
├── TlsError               tls_errors.py: a TLS session inside a stream failed
└── HttpError              http1/errors.py: an HTTP/1.1 message or exchange failed

Each program has a few of its own beside the code that raises them.
"""

from typing import Self


class ByoaiError(Exception):
    """An error whose sentence is fit for a person: what was attempted, found and allowed."""

    kept: "ByoaiError | None" = None
    """For an error made by `copied`: the error that it is a copy of."""

    def copied(self) -> Self:
        """Return a copy to raise, for an owner that keeps this error itself.

        A raised error holds the frames that it passed, and those hold the owner. With the raised
        error in its own hands the owner would stay in memory until a full garbage collection.
        """
        copy = type(self).__new__(type(self), *self.args)
        copy.__dict__.update(self.__dict__)
        copy.__cause__ = self.__cause__
        copy.kept = self
        return copy


class ConfigError(ByoaiError):
    """A setting is missing, unknown or wrong."""
