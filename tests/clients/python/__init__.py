"""Scripts that run in a client library's own environment; each prints one JSON line a case."""
