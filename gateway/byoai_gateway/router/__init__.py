"""Who answers a request under `/v1`, and what happens when they do not.

Rules are pure (`decision`, `breaker`, `classify`, `dialects`); `streaming` and `router` do the I/O.
"""
