"""`byoai.link.v1`, without I/O: bytes in, events out, bytes out; time is an argument.

Read in this order: `frames` (the codec), `control` (what control frames say), `outbox`
(what leaves first), `credit` (how much may be under way), `budget` (how much misbehaviour
is borne), `link_protocol` (a link's handshake, liveness and end), `endpoint` (streams, for
the two ends). The relay's switch is built on `link_protocol` too, in `byoai_relay.switch`.
"""
