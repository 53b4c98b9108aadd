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


class ByoaiError(Exception):
    """An error whose sentence is fit for a person: what was attempted, found and allowed."""


class ConfigError(ByoaiError):
    """A setting is missing, unknown or wrong."""
