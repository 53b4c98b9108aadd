"""Strict HTTP/1.1 (RFC 9112) over any asyncio transport: both halves, and the way between them.

`client` and `server` are the two halves, `pool` keeps idle client connections, `forward` pipes
a request and its response from one to the other. What they share: `head` (start line and
headers), `framing` (where a body ends, and what must be refused because two readers could
disagree about it), `decoding` (bytes of a body), `incoming` and `outgoing` (a body as it comes
and goes, with back-pressure), `errors`.

Everything hot is a callback on bytes: there is no task, future or queue per chunk, and one
event below becomes one write above.
"""
